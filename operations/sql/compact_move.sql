-- Moves the floors of entities whose marks, and whose types' settings, are locked by this transaction,
-- each on to a snapshot that still covers what goes, and says what became of each. The snapshots stay
-- as they are: whoever changes one holds the marks' lock (to lock 100,000 of them writes them all).
-- $1 log, $2 entity types, $3 entity ids, $4 entity keys, $5 new floors, $6 positions of the snapshots'
-- newest events, $7 the operation.
-- Row: entity key, reason (empty: it was moved), and as it was: floor, floor_position, snapshot_seq,
-- changed_by. Index: primary keys of entities, entity_marks and snapshots.
WITH judged AS MATERIALIZED (
  SELECT w.key, w.type_id, w.target, w.position, s.type, m.floor, m.floor_position, m.snapshot_seq, m.changed_by,
    CASE
      WHEN m.entity_key IS NULL OR e.entity_key IS NULL THEN 'gone'
      WHEN m.held THEN 'held'
      WHEN coalesce((t.settings->>'needs_full_replay')::bool, false) THEN 'needs_full_replay'
      WHEN coalesce(m.floor, e.last_seq - e.event_count + 1) >= w.target THEN 'current'
      WHEN s.seq IS NULL THEN 'changed'
      ELSE '' END AS reason
  FROM unnest($2::int[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    w(type_id, entity_id, key, target, position)
  CROSS JOIN LATERAL (
    SELECT y.settings,
      coalesce((SELECT f.registered_at FROM everstate.folds f WHERE f.entity_type = y.name
        ORDER BY f.version DESC LIMIT 1), '-infinity') AS since
    FROM everstate.entity_types y WHERE y.type_id = w.type_id LIMIT 1) t
  LEFT JOIN LATERAL (
    SELECT x.entity_key, x.last_seq, x.event_count FROM everstate.entities x
    WHERE x.log_id = $1 AND x.type_id = w.type_id AND x.entity_id = w.entity_id LIMIT 1) e ON true
  LEFT JOIN LATERAL (
    SELECT x.* FROM everstate.entity_marks x
    WHERE x.log_id = $1 AND x.entity_key = w.key LIMIT 1) m ON true
  LEFT JOIN LATERAL (
    SELECT x.seq, x.type FROM everstate.snapshots x
    WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq = w.target - 1
      AND x.position = w.position AND x.removed_at IS NULL
      AND (x.verified_at > t.since
        OR (x.source = 0 AND coalesce((t.settings->>'trust_snapshots')::bool, false)))
      AND everstate.snapshot_is_usable_v1(t.settings, x.type) LIMIT 1) s ON true
), moved AS (
  UPDATE everstate.entity_marks m
  SET floor = j.target, floor_position = j.position, snapshot_seq = j.target - 1,
    floor_type_id = j.type_id, floor_snapshot = j.type, changed_by = $7, changed_at = clock_timestamp()
  FROM judged j
  WHERE m.log_id = $1 AND m.entity_key = j.key AND j.reason = ''
)
SELECT j.key, j.reason, j.floor, j.floor_position, j.snapshot_seq, j.changed_by FROM judged j
