-- Makes event types that are missing. $1 names, $2 content types, $3 schema versions, $4 how many there
-- may be in all.
INSERT INTO everstate.event_types (name, content_type, schema_version)
SELECT n.name, n.content_type, n.schema_version
FROM unnest($1::text[], $2::text[], $3::int[]) n(name, content_type, schema_version)
WHERE NOT EXISTS (SELECT FROM everstate.event_types t
    WHERE (t.name, t.content_type, t.schema_version) = (n.name, n.content_type, n.schema_version))
  AND (SELECT count(*) FROM everstate.event_types) + cardinality($1::text[]) <= $4
ON CONFLICT (name, content_type, schema_version) DO NOTHING
