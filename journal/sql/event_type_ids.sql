-- Ids of event types. $1 names, $2 content types, $3 schema versions.
-- Index: unique (name, content_type, schema_version).
SELECT t.type_id, t.name, t.content_type, t.schema_version
FROM unnest($1::text[], $2::text[], $3::int[]) n(name, content_type, schema_version)
JOIN everstate.event_types t USING (name, content_type, schema_version)
