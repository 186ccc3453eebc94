-- Groups by name with place and lag. $1 name (null: all), $2 after this name, $3 rows at most.
-- Row: see `journal.groups.store`. Index: consumer_groups_name_key, group_partitions_pkey,
-- batches_pkey, parked_events_pkey, group_members_group.
SELECT g.*, l.name AS log, h.last_position AS head, p.position, p.partitions,
  h.bytes_total - coalesce(at.bytes_total, 0) AS lag_bytes,
  coalesce(extract(epoch FROM clock_timestamp() - later.recorded_at), 0)::float8 AS lag_seconds,
  e.parked, e.held, e.replaying, m.members
FROM everstate.consumer_groups g
JOIN everstate.logs l USING (log_id)
CROSS JOIN LATERAL (
  SELECT count(*)::int AS partitions,
    min(CASE WHEN cardinality(x.pending) > 0 THEN x.pending[1] - 1 ELSE x.watermark END) AS position
  FROM everstate.group_partitions x WHERE x.group_id = g.group_id) p
CROSS JOIN LATERAL (
  SELECT b.last_position, b.bytes_total FROM everstate.batches b WHERE b.log_id = g.log_id
  ORDER BY b.last_position DESC LIMIT 1) h
LEFT JOIN LATERAL (
  SELECT b.bytes_total FROM everstate.batches b
  WHERE b.log_id = g.log_id AND b.last_position <= p.position
  ORDER BY b.last_position DESC LIMIT 1) at ON true
LEFT JOIN LATERAL (
  SELECT b.recorded_at FROM everstate.batches b
  WHERE b.log_id = g.log_id AND b.last_position > p.position
  ORDER BY b.last_position LIMIT 1) later ON true
CROSS JOIN LATERAL (
  SELECT count(*) FILTER (WHERE x.state = 'parked') AS parked,
    count(*) FILTER (WHERE x.state = 'held') AS held,
    count(*) FILTER (WHERE x.state = 'replaying') AS replaying
  FROM everstate.parked_events x WHERE x.group_id = g.group_id) e
CROSS JOIN LATERAL (
  SELECT count(*)::int AS members FROM everstate.group_members x
  WHERE x.group_id = g.group_id AND x.expires_at > clock_timestamp()) m
WHERE ($1::text IS NULL OR g.name = $1) AND g.name > $2
ORDER BY g.name LIMIT $3
