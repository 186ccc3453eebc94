-- A replay of the live build of a projection. $1 id, $2 name, $3 version, $4 build, $5 selection,
-- $6 events a second, $7 reason, $8 principal, $9 the slices of what it selects (null: any).
-- Makes a row for each segment that has some of it. Row: replay_id.
-- Index: projection_replays_pkey, projection_checkpoints_pkey.
WITH r AS (
  INSERT INTO everstate.projection_replays
    (replay_id, name, version, build, state, selection, rate, reason, principal)
  VALUES ($1, $2, $3, $4, 'running', $5, $6, $7, $8)
  RETURNING replay_id
), s AS (
  INSERT INTO everstate.projection_replay_segments (replay_id, segment)
  SELECT r.replay_id, c.segment FROM r, everstate.projection_checkpoints c
  WHERE c.name = $2 AND c.version = $3 AND c.build = $4
    AND ($9::int[] IS NULL OR EXISTS (
      SELECT FROM unnest($9::int[]) AS x(slice) WHERE x.slice BETWEEN c.first_slice AND c.last_slice))
)
SELECT r.replay_id FROM r
