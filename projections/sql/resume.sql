-- Ends a pause, and lets halted segments of versions that run try again. $1 name.
-- Row: how many segments had halted; no row: there is no such projection.
-- Index: projections_pkey, projection_checkpoints_pkey.
WITH p AS (
  UPDATE everstate.projections SET paused = false, pause_reason = '', paused_at = NULL
  WHERE name = $1 RETURNING name
), c AS (
  UPDATE everstate.projection_checkpoints SET state = 'running', error = NULL
  WHERE name = $1 AND state = 'halted' RETURNING segment
)
SELECT (SELECT count(*) FROM c) AS resumed FROM p
