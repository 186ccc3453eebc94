-- Sets an entity type; its row as `type_get`. $1 name, $2 settings, $3 by whom.
-- Index: entity_types_name_key.
UPDATE everstate.entity_types t
SET settings = $2, version = t.version + 1, updated_at = clock_timestamp(), updated_by = $3
WHERE t.name = $1
RETURNING t.name, t.settings, t.version, t.updated_at, t.updated_by
