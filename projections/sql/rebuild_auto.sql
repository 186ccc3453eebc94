-- Notes of a build that was made what its order said. $1 name, $2 version, $3 build, $4 whether it goes
-- live by itself, $5 the operation that ordered it. Row: build. Index: projection_builds_pkey.
UPDATE everstate.projection_builds SET auto_switch = $4, operation_id = $5
WHERE name = $1 AND version = $2 AND build = $3
RETURNING build
