-- Items of an operation that are done and not undone, newest first: what undo goes through; those that
-- an undo before this one has left are tried once more. $1 operation, $2 up to
-- this number, $3 rows at most. Row: `operations.model.Item`.
-- Index: operation_items_pkey, entity_types_pkey.
SELECT i.no, i.entity_key, coalesce(t.name, '') AS entity_type, i.entity_type_id, i.entity_id, i.sequence,
  i.target, i.position, i.events, i.bytes, i.state, i.reason, i.before
FROM everstate.operation_items i
LEFT JOIN everstate.entity_types t ON t.type_id = i.entity_type_id
WHERE i.operation_id = $1 AND i.no <= $2 AND i.state IN (1, 5)
ORDER BY i.no DESC LIMIT $3
