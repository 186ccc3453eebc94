-- Whether an operation has changed. $1 id. Row: version, state. Index: operations_pkey.
SELECT o.version, o.state FROM everstate.operations o WHERE o.operation_id = $1
