-- How many entities of some types there are, and their events. $1 log, $2 entity types.
-- Row: entities, events. Index: entity_types_name_key, entities_pkey.
SELECT count(*) AS entities, coalesce(sum(e.event_count), 0)::bigint AS events
FROM everstate.entity_types t
JOIN everstate.entities e ON e.log_id = $1 AND e.type_id = t.type_id
WHERE t.name = ANY ($2::text[])
