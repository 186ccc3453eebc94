-- Items of a task that it said nothing of are done. $1 operation, $2 state they are in, $3 state they
-- get. Index: operation_items_pkey.
UPDATE everstate.operation_items SET state = $3 WHERE operation_id = $1 AND state = $2
