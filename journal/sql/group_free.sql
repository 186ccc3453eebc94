-- Which of these entities have no event on the list. $1 group, $2 entity types, $3 entity ids.
-- Index: parked_events_entity.
SELECT w.entity_type, w.entity_id FROM unnest($2::text[], $3::text[]) w(entity_type, entity_id)
WHERE NOT EXISTS (SELECT FROM everstate.parked_events e
  WHERE e.group_id = $1 AND e.entity_type = w.entity_type AND e.entity_id = w.entity_id)
