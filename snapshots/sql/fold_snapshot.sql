-- The newest snapshot of an entity that a fold can load, not removed, from $3 to $4.
-- $1 log, $2 entity key, $3 and $4 sequence numbers (inclusive), $5 types that the fold loads.
-- Row: seq, type, payload, position, event_at. Index: primary key of snapshots.
SELECT s.seq, s.type, s.payload, s.position, s.event_at FROM everstate.snapshots s
WHERE s.log_id = $1 AND s.entity_key = $2 AND s.seq BETWEEN $3 AND $4 AND s.removed_at IS NULL
  AND s.type = ANY ($5::text[])
ORDER BY s.seq DESC LIMIT 1
