-- Who has not read all of a log yet, and how far each has come. $1 log.
-- A build needs what its slowest segment has not applied (one that has none yet: everything); a group
-- what its slowest partition has not settled: pending events count, parked ones are settled.
-- Row: name, state, entity types (empty: all), position.
-- Index: projection_checkpoints_pkey, group_partitions_pkey.
SELECT 'projection ' || b.name AS name, b.version, b.build, b.state, v.entity_types,
  coalesce((SELECT min(c.position) FROM everstate.projection_checkpoints c
    WHERE c.name = b.name AND c.version = b.version AND c.build = b.build), 0) AS position
FROM everstate.projection_builds b
JOIN everstate.projection_versions v ON v.name = b.name AND v.version = b.version
WHERE v.log_id = $1 AND b.state IN ('ordered', 'building', 'ready', 'live', 'previous')
UNION ALL
SELECT 'group ' || g.name, 0, 0, 'group', g.entity_types,
  coalesce((SELECT min(CASE WHEN cardinality(p.pending) > 0
      THEN least(p.watermark, p.pending[1] - 1) ELSE p.watermark END)
    FROM everstate.group_partitions p WHERE p.group_id = g.group_id), 0)
FROM everstate.consumer_groups g WHERE g.log_id = $1
ORDER BY 1, 2, 3
