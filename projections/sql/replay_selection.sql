-- Which entities a replay is for. $1 replay. Row: selection. Index: projection_replays_pkey.
SELECT r.selection FROM everstate.projection_replays r WHERE r.replay_id = $1
