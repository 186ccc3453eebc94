-- Settings of the entity types that have any. $1 names (null: all). Row: name, settings.
-- Index: entity_types_name_key.
SELECT t.name, t.settings FROM everstate.entity_types t
WHERE t.version > 0 AND ($1::text[] IS NULL OR t.name = ANY ($1::text[]))
