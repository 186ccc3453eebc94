-- Entities that have an event in a range of positions; the caller keeps it short. No order.
-- $1 log, $2 first, $3 last position, $4 entity types (null: all). Row: entity type id, entity id.
-- Index: primary key (position) of the chunk.
SELECT DISTINCT x.entity_type_id, x.entity_id FROM everstate.events x
WHERE x.log_id = $1 AND x.position BETWEEN $2 AND $3
  AND ($4::int[] IS NULL OR x.entity_type_id = ANY ($4::int[]))
