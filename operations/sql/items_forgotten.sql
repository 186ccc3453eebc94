-- Notes that no item of an operation is left. $1 operation. Index: operations_pkey.
UPDATE everstate.operations SET items_left = false WHERE operation_id = $1
