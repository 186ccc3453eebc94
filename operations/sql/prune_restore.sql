-- Brings snapshots back that an operation has removed. $1 log, $2 operation, an array each: $3 entity
-- keys, $4 sequence numbers. Row: entity_key of each that is back. Index: primary key of snapshots.
UPDATE everstate.snapshots s SET removed_at = NULL, removed_by = NULL
FROM unnest($3::bigint[], $4::bigint[]) w(key, seq)
WHERE s.log_id = $1 AND s.entity_key = w.key AND s.seq = w.seq AND s.removed_by = $2
RETURNING s.entity_key
