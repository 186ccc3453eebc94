-- An entity that snapshots are saved for or deleted from. $1 log, $2 entity type, $3 entity id.
-- Row: entity key, first and last sequence number, first and last position. Index: primary key of
-- entities.
SELECT e.entity_key, e.last_seq - e.event_count + 1 AS first, e.last_seq, e.first_position, e.last_position
FROM everstate.entities e
JOIN everstate.entity_types t ON t.type_id = e.type_id
WHERE e.log_id = $1 AND t.name = $2 AND e.entity_id = $3
