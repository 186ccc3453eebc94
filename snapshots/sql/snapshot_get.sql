-- The newest snapshot of an entity, removed ones aside, of at most a sequence number and a time.
-- $1 log, $2 entity type, $3 entity id, $4 highest sequence number, $5 latest time of the newest event
-- covered (null: any). Row: those of `snapshots_list` and the payload; one row with nulls where the
-- entity has no such snapshot. Index: primary keys of entities, entity_marks and snapshots.
SELECT s.seq, s.position, s.event_at, s.type, s.content_type, octet_length(s.payload) AS size,
  s.recorded_at, s.verified_at, s.source, coalesce(s.seq = m.snapshot_seq, false) AS covers,
  everstate.snapshot_is_usable_v1(t.settings, s.type) AS usable, s.payload
FROM everstate.entities e
JOIN everstate.entity_types t ON t.type_id = e.type_id
LEFT JOIN everstate.entity_marks m ON m.log_id = e.log_id AND m.entity_key = e.entity_key
LEFT JOIN LATERAL (
  SELECT x.* FROM everstate.snapshots x
  WHERE x.log_id = e.log_id AND x.entity_key = e.entity_key AND x.removed_at IS NULL AND x.seq <= $4
    AND ($5::timestamptz IS NULL OR x.event_at <= $5)
  ORDER BY x.seq DESC LIMIT 1) s ON true
WHERE e.log_id = $1 AND t.name = $2 AND e.entity_id = $3
