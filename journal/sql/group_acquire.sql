-- A member takes partitions that are free, its own, or of a member that is gone; each gets the next
-- epoch. $1 group, $2 member, $3 partitions. Rows: those it got, with all that is to be gone on
-- from. Index: group_partitions_pkey, group_members_pkey.
UPDATE everstate.group_partitions p SET holder = $2, epoch = p.epoch + 1
FROM (
  SELECT x.group_id, x.partition FROM everstate.group_partitions x
  WHERE x.group_id = $1 AND x.partition = ANY ($3::int[])
    AND (x.holder IS NULL OR x.holder = $2 OR NOT EXISTS (
      SELECT FROM everstate.group_members m
      WHERE m.member_id = x.holder AND m.expires_at > clock_timestamp()))
    AND EXISTS (SELECT FROM everstate.group_members m
      WHERE m.member_id = $2 AND m.expires_at > clock_timestamp())
  ORDER BY x.partition FOR UPDATE SKIP LOCKED) f
WHERE p.group_id = f.group_id AND p.partition = f.partition
RETURNING p.partition, p.first_slice, p.last_slice, p.epoch, p.watermark, p.pending, p.attempts,
  p.due_us, p.parked, p.parked_version
