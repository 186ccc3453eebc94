-- Entities of a type, by id, with what decides whether a snapshot is due; the caller judges.
-- $1 log, $2 entity type, $3 ids after this one, $4 rows at most, $5 whether the age is asked for.
-- Row: id, state, last sequence number, newest usable snapshot's sequence number (null: none), first
-- sequence number, time of the oldest event after that snapshot (null: not asked for, or none).
-- Index: primary keys of entities and snapshots, unique (entity_key, seq) of the chunk.
SELECT e.entity_id, e.state, e.last_seq, s.seq AS snapshot_seq,
  e.last_seq - e.event_count + 1 AS first, v.event_at
FROM everstate.entities e
JOIN everstate.entity_types t ON t.type_id = e.type_id
LEFT JOIN LATERAL (
  SELECT x.seq, x.position FROM everstate.snapshots x
  WHERE x.log_id = e.log_id AND x.entity_key = e.entity_key AND x.removed_at IS NULL
    AND everstate.snapshot_is_usable_v1(t.settings, x.type)
  ORDER BY x.seq DESC LIMIT 1) s ON true
LEFT JOIN LATERAL (
  SELECT everstate.event_time_v1(x.metadata, x.recorded_at) AS event_at
  FROM everstate.events x
  WHERE $5 AND x.log_id = e.log_id AND x.entity_key = e.entity_key
    AND x.seq = coalesce(s.seq + 1, e.last_seq - e.event_count + 1)
    AND x.position BETWEEN coalesce(s.position, e.first_position) AND e.last_position
  LIMIT 1) v ON true
WHERE e.log_id = $1 AND e.type_id = (SELECT k.type_id FROM everstate.entity_types k WHERE k.name = $2)
  AND e.entity_id > $3
ORDER BY e.entity_id LIMIT $4
