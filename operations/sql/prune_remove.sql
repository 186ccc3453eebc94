-- Marks snapshots as removed by an operation; the marks of their entities are locked by this
-- transaction. $1 log, $2 operation, an array each: $3 entity keys, $4 sequence numbers.
-- Row: entity_key of each. Index: primary key of snapshots.
UPDATE everstate.snapshots s SET removed_at = clock_timestamp(), removed_by = $2
FROM unnest($3::bigint[], $4::bigint[]) w(key, seq)
WHERE s.log_id = $1 AND s.entity_key = w.key AND s.seq = w.seq AND s.removed_at IS NULL
RETURNING s.entity_key
