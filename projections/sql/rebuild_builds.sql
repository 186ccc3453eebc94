-- The builds of a projection that are not retired, newest first, with the positions of their slowest
-- (low) and fastest (high) segment and how many segments a worker has. $1 name.
-- Row: `projections.rebuild.Build`. Index: projection_builds_pkey, projection_checkpoints_pkey,
-- leases_pkey.
SELECT d.version, d.build, d.state, d.schema_name, d.role_name, d.target_position, d.previous_at,
  coalesce(c.low, 0) AS low, coalesce(c.high, 0) AS high, coalesce(c.halted, 0)::int AS halted,
  coalesce(c.held, 0)::int AS held
FROM everstate.projection_builds d
CROSS JOIN LATERAL (
  SELECT min(x.position) AS low, max(x.position) AS high,
    count(*) FILTER (WHERE x.state = 'halted') AS halted, count(l.name) AS held
  FROM everstate.projection_checkpoints x
  LEFT JOIN everstate.leases l ON l.kind = 'segment' AND l.expires_at > clock_timestamp()
    AND l.name = x.name || '/' || x.version || '/' || x.build || '/' || x.segment
  WHERE x.name = d.name AND x.version = d.version AND x.build = d.build
) c
WHERE d.name = $1 AND d.state <> 'retired'
ORDER BY d.version DESC, d.build DESC
