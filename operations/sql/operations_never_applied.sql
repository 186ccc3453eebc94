-- Deletes plans that nobody applied and whose items are gone. $1 how long they are kept after their end,
-- $2 rows at most. Row: operation_id. Index: operations_never_applied, operations_pkey.
DELETE FROM everstate.operations WHERE operation_id IN (
  SELECT o.operation_id FROM everstate.operations o
  WHERE o.applied_at IS NULL AND NOT o.items_left AND o.state IN ('expired', 'cancelled')
    AND o.finished_at <= clock_timestamp() - $1::interval
  ORDER BY o.finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)
RETURNING operation_id
