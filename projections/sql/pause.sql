-- Pauses a projection: commits of its segments that begin later are refused. $1 name, $2 reason.
-- Row: name; no row: there is no such projection. Index: projections_pkey.
UPDATE everstate.projections SET paused = true, pause_reason = $2, paused_at = clock_timestamp()
WHERE name = $1 RETURNING name
