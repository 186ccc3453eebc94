-- Whether an operation goes on; it does not change until the transaction ends. $1 operation.
-- Row: state, wish. Index: operations_pkey.
SELECT o.state, o.wish FROM everstate.operations o WHERE o.operation_id = $1 FOR SHARE
