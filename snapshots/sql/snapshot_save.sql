-- Saves snapshots of entities whose marks are locked by this transaction, each with the position and
-- the time of the newest event that it covers.
-- $1 log; by snapshot: $2 entity key, $3 sequence number, $4 and $5 bounds of that event's position,
-- $6 type, $7 content type, $8 payload, $9 whether it is verified; $10 source, $11 whether another one
-- at that sequence number is replaced (it is verified no longer then).
-- Row, one a snapshot, in order: verdict (0 saved, 1 the same is there, 2 another one is there, 3 below
-- the floor, 4 there is no such event, 5 another one is there, seen or removed, and a hold is on the
-- entity, 6 one is there that an operation removed and may bring back, 7 saved in the place of
-- another), removed_by (that operation). Index: primary key of snapshots, unique (entity_key, seq) of
-- the chunk, operations_pkey.
WITH judged AS MATERIALIZED (
  SELECT g.*, v.position, v.event_at,
    CASE
      WHEN s.here AND s.same THEN 1
      WHEN g.seq < m.floor THEN 3
      WHEN v.position IS NULL THEN 4
      WHEN s.here AND NOT $11 THEN 2
      WHEN s.removed_by IS NOT NULL THEN 6
      WHEN m.held AND NOT s.same THEN 5
      WHEN s.here THEN 7
      ELSE 0 END AS verdict,
    s.removed_by
  FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[],
      $8::bytea[], $9::boolean[]) WITH ORDINALITY
    g(key, seq, low, high, type, content_type, payload, verified, n)
  JOIN everstate.entity_marks m ON m.log_id = $1 AND m.entity_key = g.key
  LEFT JOIN LATERAL (
    SELECT x.type = g.type AND x.content_type = g.content_type AND x.payload = g.payload AS same,
      x.removed_at IS NULL AS here, (
        SELECT o.operation_id FROM everstate.operations o
        WHERE o.operation_id = x.removed_by AND NOT o.items_gone) AS removed_by
    FROM everstate.snapshots x
    WHERE x.log_id = $1 AND x.entity_key = g.key AND x.seq = g.seq
    LIMIT 1) s ON true
  LEFT JOIN LATERAL (
    SELECT x.position, everstate.event_time_v1(x.metadata, x.recorded_at) AS event_at
    FROM everstate.events x
    WHERE x.log_id = $1 AND x.entity_key = g.key AND x.seq = g.seq
      AND x.position BETWEEN g.low AND g.high LIMIT 1) v ON true
), saved AS (
  INSERT INTO everstate.snapshots (entity_key, seq, recorded_at, log_id, verified_at, type,
      content_type, payload, position, event_at, source)
    SELECT j.key, j.seq, clock_timestamp(), $1, CASE WHEN j.verified THEN clock_timestamp() END, j.type,
      j.content_type, j.payload, j.position, j.event_at, $10
    FROM judged j WHERE j.verdict IN (0, 7)
  ON CONFLICT (log_id, entity_key, seq) DO UPDATE SET recorded_at = excluded.recorded_at,
    verified_at = excluded.verified_at, type = excluded.type, content_type = excluded.content_type,
    payload = excluded.payload, position = excluded.position, event_at = excluded.event_at,
    source = excluded.source, removed_at = NULL, removed_by = NULL
), proven AS (
  UPDATE everstate.snapshots s SET verified_at = clock_timestamp(),
    position = coalesce(s.position, j.position), event_at = coalesce(s.event_at, j.event_at)
  FROM judged j
  WHERE j.verdict = 1 AND j.verified AND s.log_id = $1 AND s.entity_key = j.key AND s.seq = j.seq
)
SELECT j.verdict, j.removed_by FROM judged j ORDER BY j.n
