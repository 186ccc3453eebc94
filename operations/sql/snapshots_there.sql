-- Which of these snapshots are stored. $1 log, $2 entity keys, $3 sequence numbers (an array each).
-- Row: entity_key. Index: primary key of snapshots.
SELECT w.key AS entity_key FROM unnest($2::bigint[], $3::bigint[]) w(key, seq)
WHERE EXISTS (
  SELECT FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq = w.seq AND x.removed_at IS NULL)
