-- Orders another build of a version. $1 name, $2 version, $3 schema of its tables, $4 role,
-- $5 whether it goes live by itself, $6 number of the build, $7 the operation that orders
-- it (null: none). It is filled up to the head of now.
-- Row: build. Index: projection_builds_pkey, projection_versions_pkey, batches_pkey.
INSERT INTO everstate.projection_builds
  (name, version, build, state, schema_name, role_name, tables, target_position, auto_switch,
   operation_id)
SELECT v.name, v.version, $6, 'ordered', $3, $4, '{}', h.last_position, $5, $7
FROM everstate.projection_versions v
CROSS JOIN LATERAL (
  SELECT b.last_position FROM everstate.batches b
  WHERE b.log_id = v.log_id ORDER BY b.last_position DESC LIMIT 1
) h
WHERE v.name = $1 AND v.version = $2
RETURNING build
