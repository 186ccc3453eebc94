-- Registered folds by entity type and version. $1 and $2: after this one, $3 at most so many.
-- Row: entity_type, version, digest, snapshot_type, content_type, registered_at. Index: folds_pkey.
SELECT f.entity_type, f.version, f.digest, f.snapshot_type, f.content_type, f.registered_at
FROM everstate.folds f
WHERE (f.entity_type, f.version) > ($1::text COLLATE "C", $2::int)
ORDER BY f.entity_type, f.version LIMIT $3
