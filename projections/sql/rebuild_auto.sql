-- Notes that a build goes live by itself. $1 name, $2 version, $3 build. Row: build.
-- Index: projection_builds_pkey.
UPDATE everstate.projection_builds SET auto_switch = true
WHERE name = $1 AND version = $2 AND build = $3
RETURNING build
