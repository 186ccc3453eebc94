-- How many events some entities have. $1 log, $2 names of their entity types, $3 their ids.
-- Row: events. Index: entity_types_name_key, entities_pkey.
SELECT coalesce(sum(e.event_count), 0)::bigint AS events
FROM unnest($2::text[], $3::text[]) w(type, entity_id)
JOIN everstate.entity_types t ON t.name = w.type
CROSS JOIN LATERAL (
  SELECT x.event_count FROM everstate.entities x
  WHERE x.log_id = $1 AND x.type_id = t.type_id AND x.entity_id = w.entity_id LIMIT 1) e
