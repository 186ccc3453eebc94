-- Makes the marks of entities that have none, in the order of their keys. $1 log, $2 entity keys,
-- $3 their types, $4 their ids. Index: entities_pkey, entity_marks_pkey.
INSERT INTO everstate.entity_marks (log_id, entity_key, floor)
SELECT $1, w.key, e.floor
FROM unnest($2::bigint[], $3::int[], $4::text[]) w(key, type, id)
CROSS JOIN LATERAL (
  SELECT x.last_seq - x.event_count + 1 AS floor FROM everstate.entities x
  WHERE x.log_id = $1 AND x.type_id = w.type AND x.entity_id = w.id LIMIT 1) e
WHERE NOT EXISTS (
  SELECT FROM everstate.entity_marks m WHERE m.log_id = $1 AND m.entity_key = w.key)
ORDER BY w.key
ON CONFLICT DO NOTHING
