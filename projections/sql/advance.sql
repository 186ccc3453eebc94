-- Moves the checkpoint of a segment together with what its batch wrote: compare and set.
-- $1 name, $2 version, $3 build, $4 segment, $5 position before, $6 position after, $7 events.
-- Row: position; no row: somebody else moved it, it halted, is paused or told to stop, or its build
-- ended: roll back and look again. The projection's row is locked first, so that a pause or a switch
-- waits for batches that are being committed and refuses later ones.
-- Index: projections_pkey, projection_builds_pkey, projection_checkpoints_pkey.
WITH p AS MATERIALIZED (
  SELECT x.name FROM everstate.projections x WHERE x.name = $1 AND NOT x.paused FOR SHARE
)
UPDATE everstate.projection_checkpoints c
SET position = $6, events = c.events + $7, updated_at = clock_timestamp()
FROM p JOIN everstate.projection_builds b ON b.name = p.name
WHERE c.name = $1 AND c.version = $2 AND c.build = $3 AND c.segment = $4
  AND c.position = $5 AND c.state = 'running'
  AND b.version = $2 AND b.build = $3 AND b.state IN ('building', 'ready', 'live', 'previous')
  AND (b.stop_position IS NULL OR $6 <= b.stop_position OR b.stop_until <= clock_timestamp())
RETURNING c.position
