-- Notes why an order cannot be carried out. $1 name, $2 version, $3 build, $4 error. Row: build.
-- Index: projection_builds_pkey.
UPDATE everstate.projection_builds SET state = 'failed', error = $4
WHERE name = $1 AND version = $2 AND build = $3 AND state = 'ordered'
RETURNING build
