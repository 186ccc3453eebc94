-- The snapshot of an entity at a sequence number. $1 log, $2 entity key, $3 sequence number.
-- Row: type, content_type, payload, verified. Index: primary key of snapshots.
SELECT s.type, s.content_type, s.payload, s.verified_at IS NOT NULL AS verified
FROM everstate.snapshots s
WHERE s.log_id = $1 AND s.entity_key = $2 AND s.seq = $3 AND s.removed_at IS NULL
