-- The head of one entity with its marks and its newest usable snapshot's sequence number.
-- $1 log, $2 entity type, $3 entity id. Row: see `journal.reader`. Index: primary keys of entities,
-- entity_marks and snapshots.
SELECT e.entity_key, e.last_seq, e.event_count, e.first_position, e.last_position, e.state, e.slice,
  coalesce(m.floor, e.last_seq - e.event_count + 1) AS floor, s.seq AS snapshot_seq
FROM everstate.entities e
JOIN everstate.entity_types t ON t.type_id = e.type_id
LEFT JOIN everstate.entity_marks m ON m.log_id = e.log_id AND m.entity_key = e.entity_key
LEFT JOIN LATERAL (
  SELECT x.seq FROM everstate.snapshots x
  WHERE x.log_id = e.log_id AND x.entity_key = e.entity_key AND x.removed_at IS NULL
    AND everstate.snapshot_is_usable_v1(t.settings, x.type)
  ORDER BY x.seq DESC LIMIT 1) s ON true
WHERE e.log_id = $1 AND t.name = $2 AND e.entity_id = $3
