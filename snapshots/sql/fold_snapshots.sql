-- Snapshots of an entity that are not removed, oldest first, without their payloads.
-- $1 log, $2 entity key, $3 after this sequence number, $4 up to this one, $5 at most so many.
-- Row: seq, type, source, recorded_at, verified_at. Index: primary key of snapshots.
SELECT s.seq, s.type, s.source, s.recorded_at, s.verified_at FROM everstate.snapshots s
WHERE s.log_id = $1 AND s.entity_key = $2 AND s.seq > $3 AND s.seq <= $4 AND s.removed_at IS NULL
ORDER BY s.seq LIMIT $5
