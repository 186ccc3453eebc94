-- The newest snapshot of an entity that a fold can load, not removed, from $3 to $4.
-- $1 log, $2 entity key, $3 and $4 sequence numbers (inclusive), $5 types that the fold loads, $6 entity
-- type: what folds made counts only when it was verified since the newest version of the type's fold is
-- known, but for the one at $7, which the floor rests on (null: all count).
-- Row: seq, type, payload, position, event_at. Index: primary keys of snapshots and folds.
SELECT s.seq, s.type, s.payload, s.position, s.event_at FROM everstate.snapshots s
WHERE s.log_id = $1 AND s.entity_key = $2 AND s.seq BETWEEN $3 AND $4 AND s.removed_at IS NULL
  AND s.type = ANY ($5::text[])
  AND ($6::text IS NULL OR s.source = 0 OR s.seq = $7::bigint
    OR s.verified_at > coalesce((SELECT f.registered_at FROM everstate.folds f WHERE f.entity_type = $6
      ORDER BY f.version DESC LIMIT 1), '-infinity'))
ORDER BY s.seq DESC LIMIT 1
