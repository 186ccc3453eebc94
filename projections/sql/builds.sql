-- Builds of projections with how far they have come and how far that is from the head.
-- $1 names after this one, $2 this name only (null: all), $3 live builds only, $4 rows at most,
-- $5 versions and $6 builds of them before this one (null: from the newest on).
-- Row: `projections.control.ProjectionRow`. Lag in bytes is to the end of the last batch that was
-- passed whole; lag in seconds is the age of the first event that was not applied.
-- Index: batches_pkey, projection_checkpoints_pkey, projection_parked_pkey.
SELECT p.name, v.version, d.build, d.state, v.kind, v.digest, l.name AS log, v.entity_types,
  v.event_types, v.segments, v.on_poison, v.replayable, d.schema_name, d.tables, d.target_position,
  d.error, v.registered_at, d.created_at, d.ready_at, d.live_at, d.previous_at, d.retired_at,
  p.live_version, p.live_build, p.paused, p.pause_reason,
  coalesce(c.position, 0) AS position, coalesce(c.events, 0)::bigint AS events,
  coalesce(c.halted, 0) AS halted, c.updated_at, k.parked, h.last_position AS head,
  greatest(h.last_position - coalesce(c.position, 0), 0) AS lag_events,
  greatest(h.bytes_total - coalesce(b.bytes_total, 0), 0) AS lag_bytes,
  coalesce(greatest(extract(epoch FROM clock_timestamp() - n.recorded_at), 0), 0)::float8 AS lag_seconds
FROM everstate.projections p
JOIN everstate.projection_versions v ON v.name = p.name
JOIN everstate.projection_builds d ON d.name = v.name AND d.version = v.version
JOIN everstate.logs l ON l.log_id = v.log_id
CROSS JOIN LATERAL (
  SELECT min(x.position) AS position, sum(x.events) AS events, max(x.updated_at) AS updated_at,
    count(*) FILTER (WHERE x.state = 'halted') AS halted
  FROM everstate.projection_checkpoints x
  WHERE x.name = d.name AND x.version = d.version AND x.build = d.build
) c
CROSS JOIN LATERAL (
  SELECT count(*) AS parked FROM everstate.projection_parked x
  WHERE x.name = d.name AND x.version = d.version AND x.build = d.build
) k
CROSS JOIN LATERAL (
  SELECT x.last_position, x.bytes_total FROM everstate.batches x
  WHERE x.log_id = v.log_id ORDER BY x.last_position DESC LIMIT 1
) h
LEFT JOIN LATERAL (
  SELECT x.bytes_total FROM everstate.batches x
  WHERE x.log_id = v.log_id AND x.last_position <= coalesce(c.position, 0)
  ORDER BY x.last_position DESC LIMIT 1
) b ON true
LEFT JOIN LATERAL (
  SELECT x.recorded_at FROM everstate.batches x
  WHERE x.log_id = v.log_id AND x.last_position > coalesce(c.position, 0)
  ORDER BY x.last_position LIMIT 1
) n ON true
WHERE p.name > $1 AND ($2::text IS NULL OR p.name = $2)
  AND (NOT $3 OR (d.version = p.live_version AND d.build = p.live_build))
  AND ($5::int IS NULL OR (d.version, d.build) < ($5, $6::int))
ORDER BY p.name, d.version DESC, d.build DESC LIMIT $4
