-- Ends a step of a replay: notes how far it is, and holds the segment where it stands, as advance.sql
-- does. $1 name, $2 version, $3 build, $4 segment, $5 the segment's position, $6 replay, $7 cursor,
-- $8 entities and $9 events of this step, $10 state (running, done).
-- Row: segment; no row: the segment moved, halted or is paused, or the replay was ended: roll back.
-- Index: projections_pkey, projection_builds_pkey, projection_checkpoints_pkey,
-- projection_replays_pkey, projection_replay_segments_pkey.
WITH p AS MATERIALIZED (
  SELECT x.name FROM everstate.projections x WHERE x.name = $1 AND NOT x.paused FOR SHARE
), b AS MATERIALIZED (
  SELECT x.build FROM everstate.projection_builds x JOIN p ON p.name = x.name
  WHERE x.name = $1 AND x.version = $2 AND x.build = $3 AND x.state IN ('live', 'previous')
  FOR SHARE OF x
), c AS MATERIALIZED (
  SELECT x.segment FROM everstate.projection_checkpoints x JOIN b ON true
  WHERE x.name = $1 AND x.version = $2 AND x.build = $3 AND x.segment = $4 AND x.position = $5
    AND x.state = 'running'
  FOR NO KEY UPDATE OF x
), r AS MATERIALIZED (
  SELECT x.replay_id FROM everstate.projection_replays x JOIN c ON true
  WHERE x.replay_id = $6 AND x.state = 'running'
  FOR SHARE OF x
)
UPDATE everstate.projection_replay_segments s
SET cursor = $7, entities = s.entities + $8, events = s.events + $9, state = $10,
  updated_at = clock_timestamp()
FROM r WHERE s.replay_id = r.replay_id AND s.segment = $4
RETURNING s.segment
