-- Heads and floors of entities, in the order of the arguments, and what their floors rest on.
-- $1 log; by entity, an array each: $2 type, $3 id, $4 entity type's id and snapshot type of all that
-- folds can load, as "<id>/<type>" (no array by entity).
-- Row: entity_key (null: there is no such entity), last_seq, first_seq, first_position, last_position,
-- floor, base_bytes (size of the snapshot that the floor rests on; null: none that a fold can load).
-- Index: primary key of entities, entity_marks_pkey, primary key of snapshots.
SELECT e.entity_key, e.last_seq, e.first_seq, e.first_position, e.last_position,
  coalesce(m.floor, e.first_seq) AS floor, s.bytes AS base_bytes
FROM unnest($2::int[], $3::text[]) WITH ORDINALITY w(type_id, id, n)
LEFT JOIN LATERAL (
  SELECT x.entity_key, x.last_seq, x.last_seq - x.event_count + 1 AS first_seq, x.first_position,
    x.last_position
  FROM everstate.entities x
  WHERE x.log_id = $1 AND x.type_id = w.type_id AND x.entity_id = w.id LIMIT 1) e ON true
LEFT JOIN everstate.entity_marks m ON m.log_id = $1 AND m.entity_key = e.entity_key
LEFT JOIN LATERAL (
  SELECT octet_length(x.payload) AS bytes FROM everstate.snapshots x
  WHERE m.floor > e.first_seq AND x.log_id = $1 AND x.entity_key = e.entity_key
    AND x.seq = m.floor - 1 AND x.removed_at IS NULL
    AND w.type_id || '/' || x.type = ANY ($4::text[]) LIMIT 1) s ON true
ORDER BY w.n
