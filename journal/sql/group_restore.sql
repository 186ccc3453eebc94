-- Partitions are where they were, with a new epoch and without a holder. $1 group, $2 partitions,
-- $3 watermarks, $4 pending, $5 attempts, $6 due_us (each as the text of an array), $7 the operation
-- that had moved the group before (null: none). Rows: partition.
-- Index: group_partitions_pkey, consumer_groups_pkey.
WITH g AS (UPDATE everstate.consumer_groups SET sought_by = $7 WHERE group_id = $1)
UPDATE everstate.group_partitions p SET watermark = w.watermark, pending = w.pending::bigint[],
  attempts = w.attempts::int[], due_us = w.due::bigint[], holder = NULL, epoch = p.epoch + 1
FROM unnest($2::int[], $3::bigint[], $4::text[], $5::text[], $6::text[])
  w(partition, watermark, pending, attempts, due)
WHERE p.group_id = $1 AND p.partition = w.partition
RETURNING p.partition
