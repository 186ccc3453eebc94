-- Where partitions are, written by their holder; those of which it is not the holder any more, or in
-- another epoch, stay as they are. $1 group, $2 member, $3 partitions, $4 epochs, $5 watermarks,
-- $6, $7, $8 pending positions, attempts and times as text of arrays, $9 whether it is given back.
-- Rows: partition, parked of those that were written. Index: group_partitions_pkey.
UPDATE everstate.group_partitions p SET watermark = w.watermark, pending = w.pending::bigint[],
  attempts = w.attempts::int[], due_us = w.due_us::bigint[],
  holder = CASE WHEN w.released THEN NULL ELSE p.holder END
FROM unnest($3::int[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::boolean[])
  w(partition, epoch, watermark, pending, attempts, due_us, released)
WHERE p.group_id = $1 AND p.partition = w.partition AND p.epoch = w.epoch AND p.holder = $2
RETURNING p.partition, p.parked
