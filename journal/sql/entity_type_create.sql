-- Makes entity types that are missing. $1 names, $2 how many there may be in all.
INSERT INTO everstate.entity_types (name)
SELECT n.name FROM unnest($1::text[]) n(name)
WHERE NOT EXISTS (SELECT FROM everstate.entity_types t WHERE t.name = n.name)
  AND (SELECT count(*) FROM everstate.entity_types) + cardinality($1::text[]) <= $2
ON CONFLICT (name) DO NOTHING
