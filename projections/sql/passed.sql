-- Up to where every segment of the live build has applied the log. $1 name.
-- Row: version, position, paused, segment and error of the lowest halted segment; no row: there is no
-- such projection. Index: projections_pkey, projection_checkpoints_pkey.
SELECT p.live_version AS version, c.position, p.paused, p.pause_reason, h.segment AS halted_segment,
  h.position AS halted_position, h.error
FROM everstate.projections p
CROSS JOIN LATERAL (
  SELECT min(x.position) AS position FROM everstate.projection_checkpoints x
  WHERE x.name = p.name AND x.version = p.live_version AND x.build = p.live_build
) c
LEFT JOIN LATERAL (
  SELECT x.segment, x.position, x.error FROM everstate.projection_checkpoints x
  WHERE x.name = p.name AND x.version = p.live_version AND x.build = p.live_build
    AND x.state = 'halted'
  ORDER BY x.position LIMIT 1
) h ON true
WHERE p.name = $1
