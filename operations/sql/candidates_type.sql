-- The first entity type of a log from a number on; no row: there are no more. $1 log, $2 type id.
-- Index: primary key of entities.
SELECT e.type_id FROM everstate.entities e WHERE e.log_id = $1 AND e.type_id >= $2
ORDER BY e.type_id, e.entity_id LIMIT 1
