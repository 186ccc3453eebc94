-- Builds that are being filled. No parameters. Row: name, version, build, position, target_position.
-- Index: projection_checkpoints_pkey; builds that are not retired are few.
SELECT d.name, d.version, d.build, coalesce(c.position, 0) AS position, d.target_position
FROM everstate.projection_builds d
CROSS JOIN LATERAL (
  SELECT min(x.position) AS position FROM everstate.projection_checkpoints x
  WHERE x.name = d.name AND x.version = d.version AND x.build = d.build
) c
WHERE d.state IN ('building', 'ready')
