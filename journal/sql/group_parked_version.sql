-- How many events of a partition are on the list, and the version of the list.
-- $1 group, $2 partition. Index: group_partitions_pkey.
SELECT p.parked, p.parked_version FROM everstate.group_partitions p
WHERE p.group_id = $1 AND p.partition = $2
