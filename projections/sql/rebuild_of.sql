-- The build that an operation has ordered. $1 name, $2 operation.
-- Row: `projections.rebuild.Ordered`. Index: projection_builds_pkey, projection_checkpoints_pkey,
-- leases_pkey.
SELECT d.version, d.build, d.state, d.target_position, d.error::text AS error,
  coalesce(c.low, 0) AS low, coalesce(c.halted, 0)::int AS halted, coalesce(c.held, 0)::int AS held
FROM everstate.projection_builds d
CROSS JOIN LATERAL (
  SELECT min(x.position) AS low, count(*) FILTER (WHERE x.state = 'halted') AS halted,
    count(l.name) AS held
  FROM everstate.projection_checkpoints x
  LEFT JOIN everstate.leases l ON l.kind = 'segment' AND l.expires_at > clock_timestamp()
    AND l.name = x.name || '/' || x.version || '/' || x.build || '/' || x.segment
  WHERE x.name = d.name AND x.version = d.version AND x.build = d.build
) c
WHERE d.name = $1 AND d.operation_id = $2
