-- The text of a version that was a file. $1 name, $2 version. Row: source.
-- Index: projection_versions_pkey.
SELECT v.source FROM everstate.projection_versions v WHERE v.name = $1 AND v.version = $2
