-- The snapshots of an entity, removed ones aside, newest first.
-- $1 log, $2 entity type, $3 entity id, $4 below this sequence number, $5 rows at most. Row: as the
-- fields of `snapshots.model.SnapshotInfo` from `sequence` on; one row with nulls where the entity has
-- none. Index: primary keys of entities, entity_marks and snapshots.
SELECT s.seq, s.position, s.event_at, s.type, s.content_type, s.size, s.recorded_at, s.verified_at,
  s.source, coalesce(s.seq = m.snapshot_seq, false) AS covers,
  everstate.snapshot_is_usable_v1(t.settings, s.type) AS usable
FROM everstate.entities e
JOIN everstate.entity_types t ON t.type_id = e.type_id
LEFT JOIN everstate.entity_marks m ON m.log_id = e.log_id AND m.entity_key = e.entity_key
LEFT JOIN LATERAL (
  SELECT x.seq, x.position, x.event_at, x.type, x.content_type, octet_length(x.payload) AS size,
    x.recorded_at, x.verified_at, x.source
  FROM everstate.snapshots x
  WHERE x.log_id = e.log_id AND x.entity_key = e.entity_key AND x.removed_at IS NULL AND x.seq < $4
  ORDER BY x.seq DESC LIMIT $5) s ON true
WHERE e.log_id = $1 AND t.name = $2 AND e.entity_id = $3
ORDER BY s.seq DESC
