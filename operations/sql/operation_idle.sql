-- Seconds since an operation settled an item last, or began. $1 id. Row: seconds (null: it has not begun).
-- Index: operations_pkey.
SELECT extract(epoch FROM clock_timestamp() - greatest(o.started_at, o.acted_at)) AS seconds
FROM everstate.operations o WHERE o.operation_id = $1
