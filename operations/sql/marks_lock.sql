-- Locks the marks of entities, in the order of their keys, until the transaction ends. $1 log,
-- $2 entity keys. Rows: entity_key, held, state_by. Index: entity_marks_pkey.
SELECT m.entity_key, m.held, m.state_by FROM everstate.entity_marks m
WHERE m.log_id = $1 AND m.entity_key = ANY ($2::bigint[])
ORDER BY m.entity_key FOR UPDATE
