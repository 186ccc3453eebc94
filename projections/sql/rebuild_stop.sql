-- Tells a build to stop at a position for a while. $1 name, $2 version, $3 build, $4 position, $5 how
-- long. Row: build. Index: projection_builds_pkey.
UPDATE everstate.projection_builds SET stop_position = $4, stop_until = clock_timestamp() + $5::interval
WHERE name = $1 AND version = $2 AND build = $3
RETURNING build
