-- The first entity of a list that is not there. $1 log, $2 entity types, $3 ids. Row: type id, id.
-- Index: primary key of entities.
SELECT w.type_id, w.entity_id FROM unnest($2::int[], $3::text[]) w(type_id, entity_id)
WHERE (SELECT h.entity_key FROM everstate.entities h
  WHERE h.log_id = $1 AND h.type_id = w.type_id AND h.entity_id = w.entity_id LIMIT 1) IS NULL
LIMIT 1
