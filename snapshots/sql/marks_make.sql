-- Makes the marks of entities that have none: rows to lock, which say nothing yet.
-- $1 log, $2 entity keys in order. Index: primary key of entity_marks.
INSERT INTO everstate.entity_marks (log_id, entity_key)
SELECT $1, k.key FROM unnest($2::bigint[]) WITH ORDINALITY k(key, n) ORDER BY k.n
ON CONFLICT (log_id, entity_key) DO NOTHING
