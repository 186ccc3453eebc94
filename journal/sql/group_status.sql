-- Settings and version of a group, and how many events it has put aside. $1 group.
-- Index: consumer_groups_pkey, group_partitions_pkey.
SELECT g.*, p.partitions, p.parked FROM everstate.consumer_groups g
CROSS JOIN LATERAL (
  SELECT count(*)::int AS partitions, sum(x.parked)::bigint AS parked
  FROM everstate.group_partitions x WHERE x.group_id = g.group_id) p
WHERE g.group_id = $1
