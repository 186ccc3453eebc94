-- Facts about a window of positions: how many events, which break the order of time, which do not
-- follow their entity's event before. $1 log, $2 first, $3 last position, $4 lowest readable position.
-- Row: events, min, max position, the first breaks of time order and of the chain, as positions.
-- One event before the window is read too, as a neighbour.
-- Index: primary key (position) of the chunks.
SELECT count(*) AS events, min(w.position) AS lo, max(w.position) AS hi,
  (array_agg(w.position ORDER BY w.position) FILTER (WHERE w.recorded_at < w.previous_at))[1:10] AS backwards,
  (array_agg(w.position ORDER BY w.position) FILTER (WHERE w.broken))[1:10] AS broken
FROM (
  SELECT e.position, e.recorded_at, lag(e.recorded_at) OVER (ORDER BY e.position) AS previous_at,
    CASE WHEN e.prev_position IS NULL THEN n.first_position IS DISTINCT FROM e.position
         WHEN e.prev_position < $4 THEN false
         ELSE p.position IS NULL END AS broken
  FROM everstate.events e
  LEFT JOIN LATERAL (SELECT x.first_position FROM everstate.entities x
    WHERE e.prev_position IS NULL AND x.log_id = e.log_id AND x.type_id = e.entity_type_id AND x.entity_id = e.entity_id LIMIT 1) n ON true
  LEFT JOIN LATERAL (SELECT x.position FROM everstate.events x
    WHERE x.log_id = $1 AND x.position = e.prev_position AND x.position BETWEEN $4 AND e.position
      AND x.entity_key = e.entity_key AND x.seq = e.seq - 1 LIMIT 1) p ON true
  WHERE e.log_id = $1 AND e.position BETWEEN greatest($2 - 1, $4) AND $3
) w
WHERE w.position >= $2
