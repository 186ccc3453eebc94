-- Items of an operation that were skipped, failed or not undone. $1 operation, $2 after this number,
-- $3 state, $4 rows at most. Row: `operations.model.Item`.
-- Index: operation_items_odd, entity_types_pkey.
SELECT i.no, i.entity_key, coalesce(t.name, '') AS entity_type, i.entity_type_id, i.entity_id, i.sequence,
  i.target, i.position, i.events, i.bytes, i.state, i.reason, i.before
FROM everstate.operation_items i
LEFT JOIN everstate.entity_types t ON t.type_id = i.entity_type_id
WHERE i.operation_id = $1 AND i.state = $3::smallint AND i.state IN (2, 3, 5) AND i.no > $2
ORDER BY i.no LIMIT $4
