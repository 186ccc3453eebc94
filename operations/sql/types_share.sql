-- Keeps the settings of entity types as they are until the transaction ends: whoever sets one waits.
-- $1 entity types. Row: type_id. Index: entity_types_pkey.
SELECT t.type_id FROM everstate.entity_types t WHERE t.type_id = ANY ($1::int[])
ORDER BY t.type_id FOR SHARE
