-- Replays of a projection, newest first. $1 name, $2 this one only (null: all), $3 rows at most.
-- Row: `projections.replay.ReplayRow`.
-- Index: projection_replays_name, projection_replay_segments_pkey.
SELECT r.replay_id::text, r.name, r.version, r.build, r.state, r.selection, r.rate, r.reason,
  r.principal, r.error, r.created_at, r.finished_at, coalesce(s.entities, 0)::bigint AS entities,
  coalesce(s.events, 0)::bigint AS events, s.segments::int, s.segments_done::int
FROM everstate.projection_replays r
CROSS JOIN LATERAL (
  SELECT sum(x.entities) AS entities, sum(x.events) AS events, count(*) AS segments,
    count(*) FILTER (WHERE x.state = 'done') AS segments_done
  FROM everstate.projection_replay_segments x WHERE x.replay_id = r.replay_id
) s
WHERE r.name = $1 AND ($2::uuid IS NULL OR r.replay_id = $2)
ORDER BY r.created_at DESC LIMIT $3
