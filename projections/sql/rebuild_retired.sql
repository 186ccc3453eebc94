-- A build that is retired and not dropped, locked. $1 name, $2 version, $3 build.
-- Row: schema_name, role_name; no row: there is nothing to drop, or another worker is at it.
-- Index: projection_builds_pkey.
SELECT d.schema_name, d.role_name FROM everstate.projection_builds d
WHERE d.name = $1 AND d.version = $2 AND d.build = $3 AND d.state = 'retired' AND d.dropped_at IS NULL
FOR NO KEY UPDATE SKIP LOCKED
