-- Takes snapshots back that an operation saved, or the note that they are verified where it only
-- proved them; the marks of the entities are locked by this transaction. Those that are no longer as
-- the operation left them, that a floor rests on, or that a hold is on, stay.
-- $1 log, then an array each: $2 entity keys, $3 sequence numbers, $4 SHA-256 of the payload, $5 whether
-- it was saved. Row: entity_key, stays (why nothing was done; empty: it was); no row: changed. Index: primary key of snapshots, entity_marks_pkey.
WITH judged AS MATERIALIZED (
  SELECT w.key, w.seq, w.saved,
    CASE WHEN m.snapshot_seq = w.seq THEN 'covers' WHEN m.held THEN 'held' ELSE '' END AS stays
  FROM unnest($2::bigint[], $3::bigint[], $4::bytea[], $5::boolean[]) w(key, seq, hash, saved)
  JOIN everstate.entity_marks m ON m.log_id = $1 AND m.entity_key = w.key
  JOIN everstate.snapshots s ON s.log_id = $1 AND s.entity_key = w.key AND s.seq = w.seq
  WHERE s.removed_at IS NULL AND sha256(s.payload) = w.hash
), gone AS (
  UPDATE everstate.snapshots s
  SET removed_at = CASE WHEN j.saved THEN clock_timestamp() END,
    verified_at = CASE WHEN j.saved THEN s.verified_at END
  FROM judged j
  WHERE j.stays = '' AND s.log_id = $1 AND s.entity_key = j.key AND s.seq = j.seq
)
SELECT j.key AS entity_key, j.stays FROM judged j
