-- An entity type with its settings. $1 name. Index: entity_types_name_key.
SELECT t.name, t.settings, t.version, t.updated_at, t.updated_by FROM everstate.entity_types t
WHERE t.name = $1
