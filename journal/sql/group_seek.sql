-- All partitions go on after a position, with a new epoch and without a holder. $1 group, $2 the
-- position before the first to deliver, $3 the operation that does it (null: a client).
-- Index: group_partitions_pkey, consumer_groups_pkey.
WITH g AS (UPDATE everstate.consumer_groups SET sought_by = $3 WHERE group_id = $1)
UPDATE everstate.group_partitions SET watermark = $2, pending = '{}', attempts = '{}', due_us = '{}',
  holder = NULL, epoch = epoch + 1
WHERE group_id = $1
