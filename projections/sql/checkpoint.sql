-- Where a segment stands, where it is told to stop, and what its build is for. $1 name, $2 version, $3 build, $4 segment.
-- Row: position, stop_position, state. Index: projection_checkpoints_pkey, projection_builds_pkey.
SELECT c.position, CASE WHEN b.stop_until > clock_timestamp() THEN b.stop_position END AS stop_position,
  b.state
FROM everstate.projection_checkpoints c
JOIN everstate.projection_builds b ON b.name = c.name AND b.version = c.version AND b.build = c.build
WHERE c.name = $1 AND c.version = $2 AND c.build = $3 AND c.segment = $4
