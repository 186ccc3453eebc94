-- Names of entity types. $1 ids. Index: primary key.
SELECT t.type_id, t.name FROM everstate.entity_types t WHERE t.type_id = ANY ($1::int[])
