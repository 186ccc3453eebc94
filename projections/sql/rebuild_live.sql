-- Says which build readers see. $1 name, $2 version, $3 build. Row: name. Index: projections_pkey.
UPDATE everstate.projections
SET live_version = $2, live_build = $3, switched_at = clock_timestamp()
WHERE name = $1
RETURNING name
