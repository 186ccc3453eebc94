-- Where all partitions of a group are, locked as by group_lock. $1 group.
-- Row: partition, watermark, pending, attempts, due_us. Index: group_partitions_pkey.
SELECT p.partition, p.watermark, p.pending, p.attempts, p.due_us
FROM everstate.group_partitions p WHERE p.group_id = $1
ORDER BY p.partition FOR UPDATE
