-- Puts floors back where an operation found them: where they are still as it left them, and the
-- snapshot that the old floor rests on is still there. The marks are locked by this transaction.
-- $1 log, $2 the operation, $3 entity keys, $4 floors that it set; as it was: $5 floor, $6
-- floor_position, $7 snapshot_seq, $8 changed_by. Row: entity key of each that is back.
-- Index: primary keys of entity_marks and snapshots.
UPDATE everstate.entity_marks m
SET floor = w.floor, floor_position = w.floor_position, snapshot_seq = w.snapshot_seq,
  changed_by = w.changed_by, changed_at = clock_timestamp()
FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::uuid[])
  w(key, target, floor, floor_position, snapshot_seq, changed_by)
WHERE m.log_id = $1 AND m.entity_key = w.key AND m.changed_by = $2 AND m.floor = w.target
  AND (w.snapshot_seq IS NULL OR (
    SELECT x.seq FROM everstate.snapshots x
    WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq = w.snapshot_seq AND x.removed_at IS NULL
    LIMIT 1) IS NOT NULL)
RETURNING m.entity_key
