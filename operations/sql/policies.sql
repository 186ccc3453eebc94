-- Policies that were set. $1 kind (null: all). Row: kind, settings, version, updated_at, updated_by.
-- Index: policies_pkey.
SELECT p.kind, p.settings, p.version, p.updated_at, p.updated_by
FROM everstate.policies p WHERE $1::text IS NULL OR p.kind = $1 ORDER BY p.kind
