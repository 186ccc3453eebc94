-- Builds that have reached the position they were ordered for are ready. Row: name, version, build.
-- No parameters. Index: projection_checkpoints_pkey; builds that are not retired are few.
UPDATE everstate.projection_builds d SET state = 'ready', ready_at = clock_timestamp()
WHERE d.state = 'building' AND d.target_position <= (
  SELECT min(c.position) FROM everstate.projection_checkpoints c
  WHERE c.name = d.name AND c.version = d.version AND c.build = d.build)
RETURNING d.name, d.version, d.build
