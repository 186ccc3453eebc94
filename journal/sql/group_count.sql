-- The number of events on the list changes. $1 group, $2 partitions, $3 by how many, $4 whether
-- others than the holder did it. Rows: partition, parked. Index: group_partitions_pkey.
UPDATE everstate.group_partitions p SET parked = p.parked + w.more,
  parked_version = p.parked_version + CASE WHEN $4::boolean THEN 1 ELSE 0 END
FROM unnest($2::int[], $3::bigint[]) w(partition, more)
WHERE p.group_id = $1 AND p.partition = w.partition
RETURNING p.partition, p.parked
