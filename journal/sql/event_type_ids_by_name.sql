-- Ids of event types, whatever their content type and version. $1 names.
-- Index: unique (name, content_type, schema_version).
SELECT t.type_id FROM everstate.event_types t WHERE t.name = ANY ($1::text[])
