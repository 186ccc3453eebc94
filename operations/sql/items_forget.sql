-- Deletes some items of an operation. $1 operation, $2 rows at most. Row: how many went.
-- Index: operation_items_pkey.
WITH gone AS (
  DELETE FROM everstate.operation_items i
  WHERE i.operation_id = $1 AND i.no = ANY (ARRAY(
    SELECT x.no FROM everstate.operation_items x WHERE x.operation_id = $1 ORDER BY x.no LIMIT $2))
  RETURNING i.no
)
SELECT count(*) FROM gone
