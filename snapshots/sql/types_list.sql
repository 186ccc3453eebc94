-- Entity types by name. $1 after this name, $2 rows at most. Index: entity_types_name_key.
SELECT t.name, t.settings, t.version, t.updated_at, t.updated_by FROM everstate.entity_types t
WHERE t.name > $1 ORDER BY t.name LIMIT $2
