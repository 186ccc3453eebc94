-- Which operation set the states of entities last. $1 log, $2 entity keys, whose marks are locked,
-- $3 the operation of each (null: none is known). Index: entity_marks_pkey.
UPDATE everstate.entity_marks m SET state_by = w.operation
FROM unnest($2::bigint[], $3::uuid[]) w(key, operation)
WHERE m.log_id = $1 AND m.entity_key = w.key
