-- The partitions of a group; a holder that is gone is null. $1 group.
-- Index: group_partitions_pkey, group_members_pkey.
SELECT p.partition, p.first_slice, p.last_slice, p.watermark, cardinality(p.pending) AS pending,
  p.epoch, p.parked, p.parked_version, m.member_id AS holder
FROM everstate.group_partitions p
LEFT JOIN everstate.group_members m ON m.member_id = p.holder AND m.expires_at > clock_timestamp()
WHERE p.group_id = $1 ORDER BY p.partition
