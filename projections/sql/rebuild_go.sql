-- Ends all stops of a projection. $1 name. Row: build. Index: projection_builds_pkey.
UPDATE everstate.projection_builds SET stop_position = NULL, stop_until = NULL
WHERE name = $1 AND stop_until IS NOT NULL
RETURNING build
