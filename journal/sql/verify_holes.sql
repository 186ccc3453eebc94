-- Positions of a window that hold no event, as ranges. $1 log, $2 first, $3 last position.
-- Index: primary key (position) of the chunks.
SELECT h.lo, h.hi FROM (
  SELECT x.position + 1 AS lo, lead(x.position, 1, $3 + 1) OVER (ORDER BY x.position) - 1 AS hi
  FROM (SELECT $2::bigint - 1 AS position
        UNION ALL
        SELECT e.position FROM everstate.events e WHERE e.log_id = $1 AND e.position BETWEEN $2 AND $3) x
) h WHERE h.lo <= h.hi ORDER BY h.lo LIMIT 100
