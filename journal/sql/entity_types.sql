-- Names of entity types, by name. $1 after this one, $2 rows at most. Index: unique (name).
SELECT t.type_id, t.name FROM everstate.entity_types t WHERE t.name > $1 ORDER BY t.name LIMIT $2
