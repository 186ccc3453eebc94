-- Entities with events on the list. $1 group, $2 partition. Index: parked_events_partition.
SELECT DISTINCT e.entity_type, e.entity_id FROM everstate.parked_events e
WHERE e.group_id = $1 AND e.partition = $2
