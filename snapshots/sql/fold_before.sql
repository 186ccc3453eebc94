-- For entities, the last event before the first one that happened at or after a time. Reads times
-- only. $1 log, $2 entity keys, $3 first and $4 last positions, $5 last sequence numbers (an array
-- each), $6 the time. Row: entity_key, seq and position of that event (0: there is none before).
-- Index: unique (entity_key, seq) of the chunks.
SELECT w.entity_key, coalesce(f.seq - 1, w.last_seq) AS seq,
  CASE WHEN f.seq IS NULL THEN w.last_position ELSE coalesce(f.prev_position, 0) END AS position
FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
  w(entity_key, first_position, last_position, last_seq)
LEFT JOIN LATERAL (
  SELECT x.seq, x.prev_position FROM everstate.events x
  WHERE x.log_id = $1 AND x.entity_key = w.entity_key
    AND x.position BETWEEN w.first_position AND w.last_position
    AND everstate.event_time_v1(x.metadata, x.recorded_at) >= $6
  ORDER BY x.seq LIMIT 1) f ON true
