-- Ends replays whose segments are all done, and those whose build is retired. No parameters.
-- Row: replay_id, name, state. Index: projection_replays_running, projection_replay_segments_pkey,
-- projection_builds_pkey.
UPDATE everstate.projection_replays r
SET finished_at = clock_timestamp(),
  state = CASE d.state WHEN 'retired' THEN 'failed' ELSE 'done' END,
  error = CASE d.state WHEN 'retired' THEN '{"code": "CONFLICT", "message": "its build is retired"}'::jsonb END
FROM everstate.projection_builds d
WHERE r.state = 'running' AND d.name = r.name AND d.version = r.version AND d.build = r.build
  AND (d.state = 'retired' OR NOT EXISTS (
    SELECT FROM everstate.projection_replay_segments s
    WHERE s.replay_id = r.replay_id AND s.state <> 'done'))
RETURNING r.replay_id, r.name, r.state
