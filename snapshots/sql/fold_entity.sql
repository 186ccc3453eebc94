-- The head of an entity and its floor. $1 log, $2 entity type, $3 entity id.
-- Row: entity_key, last_seq, first_seq, first_position, last_position, floor.
-- Index: primary key of entities, entity_marks_pkey.
SELECT e.entity_key, e.last_seq, e.last_seq - e.event_count + 1 AS first_seq, e.first_position,
  e.last_position, coalesce(m.floor, e.last_seq - e.event_count + 1) AS floor
FROM everstate.entities e
JOIN everstate.entity_types t ON t.type_id = e.type_id
LEFT JOIN everstate.entity_marks m ON m.log_id = e.log_id AND m.entity_key = e.entity_key
WHERE e.log_id = $1 AND t.name = $2 AND e.entity_id = $3
