-- What replays there is to do for segments that a worker holds. $1 names, $2 versions, $3 builds and
-- $4 numbers of the segments; all null: for all segments. Without the selections: they may be large.
-- Row: `projections.replay.Task`. Index: projection_replays_running, projection_replay_segments_pkey.
SELECT r.replay_id, r.name, r.version, r.build, s.segment, r.rate, s.cursor
FROM everstate.projection_replays r
JOIN everstate.projection_replay_segments s ON s.replay_id = r.replay_id AND s.state = 'running'
WHERE r.state = 'running' AND ($1::text[] IS NULL OR (r.name, r.version, r.build, s.segment) IN
  (SELECT * FROM unnest($1, $2::int[], $3::int[], $4::int[])))
ORDER BY r.replay_id, s.segment
