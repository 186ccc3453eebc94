-- Replays of a projection, newest first. $1 name, $2 this one only (null: all), $3 rows at most,
-- $4 older than this one (null: from the newest on). Row: `projections.replay.ReplayRow`; of all, a
-- selection says how many entities or types it has, not which: they may be large.
-- Index: projection_replays_name, projection_replays_pkey, projection_replay_segments_pkey.
SELECT r.replay_id::text, r.name, r.version, r.build, r.state,
  CASE WHEN $2::uuid IS NOT NULL THEN r.selection
    WHEN r.selection ? 'entities'
      THEN jsonb_build_object('entities_count', jsonb_array_length(r.selection -> 'entities'))
    WHEN r.selection ? 'types'
      THEN jsonb_build_object('types_count', jsonb_array_length(r.selection -> 'types'))
    ELSE r.selection END AS selection,
  r.rate, r.reason,
  r.principal, r.error, r.created_at, r.finished_at, coalesce(s.entities, 0)::bigint AS entities,
  coalesce(s.events, 0)::bigint AS events, s.segments::int, s.segments_done::int
FROM everstate.projection_replays r
CROSS JOIN LATERAL (
  SELECT sum(x.entities) AS entities, sum(x.events) AS events, count(*) AS segments,
    count(*) FILTER (WHERE x.state = 'done') AS segments_done
  FROM everstate.projection_replay_segments x WHERE x.replay_id = r.replay_id
) s
WHERE r.name = $1 AND ($2::uuid IS NULL OR r.replay_id = $2)
  AND ($4::uuid IS NULL OR (r.created_at, r.replay_id) < (
    SELECT x.created_at, x.replay_id FROM everstate.projection_replays x WHERE x.replay_id = $4))
ORDER BY r.created_at DESC, r.replay_id DESC LIMIT $3
