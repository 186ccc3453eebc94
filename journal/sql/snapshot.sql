-- The newest snapshot of an entity at or below a sequence number.
-- $1 log, $2 entity key, $3 highest sequence number. Index: primary key of snapshots.
SELECT s.seq, s.type, s.content_type, s.payload, s.recorded_at FROM everstate.snapshots s
WHERE s.log_id = $1 AND s.entity_key = $2 AND s.seq <= $3 ORDER BY s.seq DESC LIMIT 1
