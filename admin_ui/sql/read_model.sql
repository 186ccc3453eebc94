-- The read model of a projection: which schema readers see and up to where it has come, as one
-- snapshot shows it. $1 name of the projection, $2 schema of its views.
-- Row: version, schema_name (of the tables), position, views (their names); no row: no such
-- projection. Index: projections_pkey, projection_builds_pkey, projection_checkpoints_pkey.
SELECT p.live_version AS version, b.schema_name, (
    SELECT coalesce(min(c.position), 0) FROM everstate.projection_checkpoints c
    WHERE c.name = p.name AND c.version = p.live_version AND c.build = p.live_build) AS position,
  ARRAY(
    SELECT v.relname::text FROM pg_catalog.pg_class v
    JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace
    WHERE n.nspname = $2 AND v.relkind = 'v' ORDER BY v.relname) AS views
FROM everstate.projections p
JOIN everstate.projection_builds b
  ON b.name = p.name AND b.version = p.live_version AND b.build = p.live_build
WHERE p.name = $1
