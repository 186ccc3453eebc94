-- Ends a replay. $1 id, $2 state (failed, cancelled), $3 error. Row: name; no row: it had ended.
-- Index: projection_replays_pkey.
UPDATE everstate.projection_replays SET state = $2, error = $3, finished_at = clock_timestamp()
WHERE replay_id = $1 AND state = 'running'
RETURNING name
