-- Names of event types. $1 ids. Index: primary key.
SELECT t.type_id, t.name, t.content_type, t.schema_version FROM everstate.event_types t
WHERE t.type_id = ANY ($1::int[])
