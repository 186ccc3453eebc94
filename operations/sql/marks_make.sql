-- Makes the marks of entities that have none, in the order of their keys. $1 log, $2 entity keys.
-- Index: entity_marks_pkey.
INSERT INTO everstate.entity_marks (log_id, entity_key)
SELECT $1, w.key FROM unnest($2::bigint[]) w(key) ORDER BY w.key
ON CONFLICT DO NOTHING
