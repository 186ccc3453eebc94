-- Snapshots of entities at sequence numbers, not removed, that folds can load. $1 log; $2 entity keys,
-- $3 sequence numbers, $4 entity type's ids (an array each); $5 types of snapshots that folds can load,
-- as "<entity type's id>/<type>". Row: entity_key, seq, type, payload, position, event_at.
-- Index: primary key of snapshots.
SELECT s.* FROM unnest($2::bigint[], $3::bigint[], $4::int[]) w(key, seq, type_id)
CROSS JOIN LATERAL (
  SELECT x.entity_key, x.seq, x.type, x.payload, x.position, x.event_at FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq = w.seq AND x.removed_at IS NULL
    AND w.type_id || '/' || x.type = ANY ($5::text[]) LIMIT 1) s
