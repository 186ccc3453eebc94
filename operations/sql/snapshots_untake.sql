-- Takes snapshots back that an operation saved, or the note that they are verified where it only
-- proved them; the marks of the entities are locked by this transaction. Those that are no longer as
-- the operation left them, or that a floor rests on, stay.
-- $1 log, $2 operation, then an array each: $3 entity keys, $4 sequence numbers, $5 SHA-256 of the
-- payload, $6 whether it was saved. Row: entity_key, covers (the floor rests on it; then nothing was
-- done); no row: changed. Index: primary key of snapshots, entity_marks_pkey.
WITH judged AS MATERIALIZED (
  SELECT w.key, w.seq, w.saved, coalesce(m.snapshot_seq = w.seq, false) AS covers
  FROM unnest($3::bigint[], $4::bigint[], $5::bytea[], $6::boolean[]) w(key, seq, hash, saved)
  JOIN everstate.entity_marks m ON m.log_id = $1 AND m.entity_key = w.key
  JOIN everstate.snapshots s ON s.log_id = $1 AND s.entity_key = w.key AND s.seq = w.seq
  WHERE s.removed_at IS NULL AND sha256(s.payload) = w.hash
), gone AS (
  UPDATE everstate.snapshots s
  SET removed_at = CASE WHEN j.saved THEN clock_timestamp() END,
    removed_by = CASE WHEN j.saved THEN $2::uuid END,
    verified_at = CASE WHEN j.saved THEN s.verified_at END
  FROM judged j
  WHERE NOT j.covers AND s.log_id = $1 AND s.entity_key = j.key AND s.seq = j.seq
)
SELECT j.key AS entity_key, j.covers FROM judged j
