-- Puts floors back where an operation found them: where they are still as it left them, and the
-- snapshot that the old floor rests on is still there and of use. The marks, and the settings of the
-- types, are locked by this transaction.
-- $1 log, $2 the operation, $3 entity keys, $4 floors that it set; as it was: $5 floor, $6
-- floor_position, $7 snapshot_seq, $8 changed_by; $9 entity types. Row: entity key of each that is back.
-- Index: primary keys of entity_marks, entity_types and snapshots.
UPDATE everstate.entity_marks m
SET floor = w.floor, floor_position = w.floor_position, snapshot_seq = w.snapshot_seq,
  floor_type_id = CASE WHEN w.snapshot_seq IS NOT NULL THEN w.type_id END, floor_snapshot = s.type,
  changed_by = w.changed_by, changed_at = clock_timestamp()
FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::uuid[], $9::int[])
  w(key, target, floor, floor_position, snapshot_seq, changed_by, type_id)
CROSS JOIN LATERAL (
  SELECT y.settings FROM everstate.entity_types y WHERE y.type_id = w.type_id LIMIT 1) t
LEFT JOIN LATERAL (
  SELECT x.type FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq = w.snapshot_seq AND x.removed_at IS NULL
    AND everstate.snapshot_is_usable_v1(t.settings, x.type)
  LIMIT 1) s ON true
WHERE m.log_id = $1 AND m.entity_key = w.key AND m.changed_by = $2 AND m.floor = w.target
  AND (w.snapshot_seq IS NULL OR s.type IS NOT NULL)
RETURNING m.entity_key
