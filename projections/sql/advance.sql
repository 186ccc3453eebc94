-- Moves the checkpoint of a segment together with what its batch wrote: compare and set.
-- $1 name, $2 version, $3 build, $4 segment, $5 position before, $6 position after, $7 events,
-- $8 the state that the build is believed to be in: effects run for the live build only, so a batch
-- that was applied for another state must not commit (null: any that is worked on).
-- Row: position; no row: somebody else moved it, it halted, is paused or told to stop, or its build
-- ended: roll back and look again. The projection's row is locked first, so that a pause or a switch
-- waits for batches that are being committed and refuses later ones. The build's row is locked too:
-- a statement that waited for the first lock would otherwise judge by the build as it was before
-- (PostgreSQL looks again at rows that it locks, and at no others).
-- Index: projections_pkey, projection_builds_pkey, projection_checkpoints_pkey.
WITH p AS MATERIALIZED (
  SELECT x.name FROM everstate.projections x WHERE x.name = $1 AND NOT x.paused FOR SHARE
), b AS MATERIALIZED (
  SELECT x.name FROM everstate.projection_builds x JOIN p ON p.name = x.name
  WHERE x.name = $1 AND x.version = $2 AND x.build = $3
    AND x.state IN ('building', 'ready', 'live', 'previous') AND x.state = coalesce($8, x.state)
    AND (x.stop_position IS NULL OR $6 <= x.stop_position OR x.stop_until <= clock_timestamp())
  FOR SHARE OF x
)
UPDATE everstate.projection_checkpoints c
SET position = $6, events = c.events + $7, error = NULL, updated_at = clock_timestamp()
FROM b
WHERE c.name = b.name AND c.version = $2 AND c.build = $3 AND c.segment = $4
  AND c.position = $5 AND c.state = 'running'
RETURNING c.position
