-- What a load begins with, all of one moment: the head of an entity, its marks, and its newest usable
-- snapshot at or below a sequence number. $1 log, $2 entity type, $3 entity id, $4 highest sequence
-- number. Row: that of `entity`, then the snapshot (its columns are null where there is none).
-- Index: primary keys of entities, entity_marks and snapshots.
SELECT e.entity_key, e.last_seq, e.event_count, e.first_position, e.last_position, e.state, e.slice,
  coalesce(m.floor, e.last_seq - e.event_count + 1) AS floor,
  CASE WHEN $4 >= e.last_seq THEN s.seq ELSE (
    SELECT x.seq FROM everstate.snapshots x
    WHERE x.log_id = e.log_id AND x.entity_key = e.entity_key AND x.removed_at IS NULL
      AND everstate.snapshot_is_usable_v1(t.settings, x.type)
    ORDER BY x.seq DESC LIMIT 1) END AS snapshot_seq,
  s.seq, s.type, s.content_type, s.payload, s.recorded_at, s.position
FROM everstate.entities e
JOIN everstate.entity_types t ON t.type_id = e.type_id
LEFT JOIN everstate.entity_marks m ON m.log_id = e.log_id AND m.entity_key = e.entity_key
LEFT JOIN LATERAL (
  SELECT x.seq, x.type, x.content_type, x.payload, x.recorded_at, x.position
  FROM everstate.snapshots x
  WHERE x.log_id = e.log_id AND x.entity_key = e.entity_key AND x.seq <= $4 AND x.removed_at IS NULL
    AND everstate.snapshot_is_usable_v1(t.settings, x.type)
  ORDER BY x.seq DESC LIMIT 1) s ON true
WHERE e.log_id = $1 AND t.name = $2 AND e.entity_id = $3
