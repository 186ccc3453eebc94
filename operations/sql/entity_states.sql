-- The states of entities. $1 log, $2 entity keys, $3 their types, $4 their ids.
-- Rows: entity_key, state. Index: entities_pkey.
SELECT w.key AS entity_key, e.state
FROM unnest($2::bigint[], $3::int[], $4::text[]) w(key, type, id)
CROSS JOIN LATERAL (
  SELECT x.state FROM everstate.entities x
  WHERE x.log_id = $1 AND x.type_id = w.type AND x.entity_id = w.id LIMIT 1) e
