-- Behind a parked event of an entity its other events are held, before it they are replayed.
-- $1 group, $2 entity types, $3 entity ids. Index: parked_events_entity.
UPDATE everstate.parked_events e
SET state = CASE WHEN e.state = 'held' THEN 'replaying' ELSE 'held' END
FROM (
  SELECT w.entity_type, w.entity_id, (
    SELECT x.position FROM everstate.parked_events x
    WHERE x.group_id = $1 AND x.entity_type = w.entity_type AND x.entity_id = w.entity_id
      AND x.state = 'parked' ORDER BY x.position LIMIT 1) AS first
  FROM unnest($2::text[], $3::text[]) w(entity_type, entity_id)) f
WHERE e.group_id = $1 AND e.entity_type = f.entity_type AND e.entity_id = f.entity_id
  AND ((e.state = 'held' AND (f.first IS NULL OR e.position < f.first))
    OR (e.state = 'replaying' AND e.position > f.first))
