-- Notes what became of snapshots that were held against a replay. One that agrees is verified, and
-- gets its position and time where it had none; one that does not is verified no longer, unless the
-- floor rests on it. One that was saved anew meanwhile stays as it is. The entity's marks are locked by
-- this transaction.
-- $1 log, $2 entity key, then an array each: $3 sequence numbers, $4 recorded_at as they were read,
-- $5 whether they agree, $6 positions and $7 times of their newest events (null: not known).
-- Row: seq of each that was noted. Index: primary key of snapshots, entity_marks_pkey.
UPDATE everstate.snapshots s
SET verified_at = CASE WHEN w.agrees THEN clock_timestamp() END,
  position = coalesce(s.position, w.position), event_at = coalesce(s.event_at, w.event_at)
FROM unnest($3::bigint[], $4::timestamptz[], $5::boolean[], $6::bigint[], $7::timestamptz[])
  w(seq, recorded_at, agrees, position, event_at)
WHERE s.log_id = $1 AND s.entity_key = $2 AND s.seq = w.seq AND s.recorded_at = w.recorded_at
  AND s.removed_at IS NULL
  AND (w.agrees OR NOT EXISTS (SELECT FROM everstate.entity_marks m
    WHERE m.log_id = $1 AND m.entity_key = $2 AND m.snapshot_seq = s.seq))
RETURNING s.seq
