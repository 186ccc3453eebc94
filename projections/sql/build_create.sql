-- A new build of a version, or one that was ordered, with a checkpoint for each segment. $1 name, $2
-- version, $3 build, $4 state, $5 schema, $6 role, $7 target position, $8 first and $9 last slices of
-- the segments. Its tables are those of the schema. Index: projection_builds_pkey.
WITH b AS (
  INSERT INTO everstate.projection_builds AS d (name, version, build, state, schema_name, role_name, tables,
    target_position, live_at)
  SELECT $1, $2, $3, $4::text, $5::text, $6, coalesce((
      SELECT array_agg(c.relname::text ORDER BY c.relname) FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $5::text
      WHERE c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition
    ), '{}'), $7, CASE $4::text WHEN 'live' THEN clock_timestamp() END
  ON CONFLICT (name, version, build) DO UPDATE
  SET state = excluded.state, tables = excluded.tables, target_position = excluded.target_position
  WHERE d.state = 'ordered'
  RETURNING d.name, d.version, d.build
)
INSERT INTO everstate.projection_checkpoints (name, version, build, segment, first_slice, last_slice)
SELECT b.name, b.version, b.build, s.number - 1, s.low, s.high
FROM b, unnest($8::smallint[], $9::smallint[]) WITH ORDINALITY AS s(low, high, number)
