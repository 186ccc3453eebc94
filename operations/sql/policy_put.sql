-- Sets the policy of a kind. $1 kind, $2 settings, $3 who, $4 the version it must have (null: any; 0:
-- none is set). Row: version; no row: it has another version. Index: policies_pkey.
INSERT INTO everstate.policies AS p (kind, settings, updated_by)
SELECT $1, $2, $3
WHERE coalesce($4::bigint, 0) = 0
  OR EXISTS (SELECT FROM everstate.policies x WHERE x.kind = $1 AND x.version = $4)
ON CONFLICT (kind) DO UPDATE SET settings = excluded.settings, updated_by = excluded.updated_by,
  version = p.version + 1, updated_at = clock_timestamp()
  WHERE $4::bigint IS NULL OR p.version = $4
RETURNING p.version
