-- All partitions go on after a position, with a new epoch and without a holder. $1 group, $2 the
-- position before the first to deliver. Index: group_partitions_pkey.
UPDATE everstate.group_partitions SET watermark = $2, pending = '{}', attempts = '{}', due_us = '{}',
  holder = NULL, epoch = epoch + 1
WHERE group_id = $1
