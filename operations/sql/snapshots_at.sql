-- The snapshot of an entity at a sequence number. $1 log, $2 entity key, $3 sequence number, $4 entity
-- type. Row: type, content_type, payload, verified (since the newest version of the type's fold is known).
-- Index: primary keys of snapshots and folds.
SELECT s.type, s.content_type, s.payload,
  coalesce(s.verified_at > coalesce((SELECT f.registered_at FROM everstate.folds f
    WHERE f.entity_type = $4 ORDER BY f.version DESC LIMIT 1), '-infinity'), false) AS verified
FROM everstate.snapshots s
WHERE s.log_id = $1 AND s.entity_key = $2 AND s.seq = $3 AND s.removed_at IS NULL
