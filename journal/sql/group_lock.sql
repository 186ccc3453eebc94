-- Keeps holders from writing until the transaction ends: operations lock partitions, in this order,
-- before parked events, as holders do. $1 group. Index: group_partitions_pkey.
SELECT p.partition FROM everstate.group_partitions p WHERE p.group_id = $1
ORDER BY p.partition FOR UPDATE
