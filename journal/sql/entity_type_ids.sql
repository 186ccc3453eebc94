-- Ids of entity types. $1 names. Index: unique (name).
SELECT t.type_id, t.name FROM everstate.entity_types t WHERE t.name = ANY ($1::text[])
