-- Locks the marks of entities, in the order of their keys: so nobody who locks several deadlocks.
-- $1 log, $2 entity keys. Index: primary key of entity_marks.
SELECT m.entity_key FROM everstate.entity_marks m
WHERE m.log_id = $1 AND m.entity_key = ANY ($2::bigint[]) ORDER BY m.entity_key FOR UPDATE
