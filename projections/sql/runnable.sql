-- Segments that may be worked on, page by page. $1, $2, $3, $4 name, version, build and segment of the
-- last one seen ('' and zeros: from the beginning), $5 rows at most.
-- Row: `projections.store.Runnable`. Index: projection_checkpoints_pkey.
SELECT c.name, c.version, c.build, c.segment, c.first_slice, c.last_slice, c.position, b.state,
  b.schema_name, b.role_name, b.target_position,
  CASE WHEN b.stop_until > clock_timestamp() THEN b.stop_position END AS stop_position, v.kind, v.digest, v.on_poison,
  l.name AS log
FROM everstate.projection_checkpoints c
JOIN everstate.projections p ON p.name = c.name AND NOT p.paused
JOIN everstate.projection_versions v ON v.name = c.name AND v.version = c.version
JOIN everstate.projection_builds b ON b.name = c.name AND b.version = c.version AND b.build = c.build
  AND b.state IN ('building', 'ready', 'live', 'previous')
JOIN everstate.logs l ON l.log_id = v.log_id
WHERE c.state = 'running' AND (c.name, c.version, c.build, c.segment) > ($1::text, $2::int, $3::int, $4::int)
ORDER BY c.name, c.version, c.build, c.segment LIMIT $5
