-- Plans that were not applied in time. $1 rows at most. Row: operation_id. Index: operations_unapplied.
SELECT o.operation_id FROM everstate.operations o
WHERE o.state IN ('planned', 'awaiting') AND o.expires_at <= clock_timestamp()
ORDER BY o.expires_at LIMIT $1
