-- What replays there is to do. No parameters.
-- Row: `projections.replay.Task`. Index: projection_replays_running, projection_replay_segments_pkey.
SELECT r.replay_id, r.name, r.version, r.build, s.segment, r.selection, r.rate, s.cursor
FROM everstate.projection_replays r
JOIN everstate.projection_replay_segments s ON s.replay_id = r.replay_id AND s.state = 'running'
WHERE r.state = 'running'
ORDER BY r.replay_id, s.segment
