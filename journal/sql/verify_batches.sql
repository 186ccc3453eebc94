-- Invariants 1 and 3 of the batch chain: rows whose first position does not follow the last one of the
-- row before, or whose time is before its. $1 log, $2 last position above (the row at it is the one
-- before), $3 last position up to. Index: primary key of batches.
SELECT b.last_position, b.first_position, b.previous, b.recorded_at < b.previous_at AS backwards
FROM (SELECT x.last_position, x.first_position, x.recorded_at,
        lag(x.last_position) OVER w AS previous, lag(x.recorded_at) OVER w AS previous_at
      FROM everstate.batches x WHERE x.log_id = $1 AND x.last_position BETWEEN $2 AND $3
      WINDOW w AS (ORDER BY x.last_position)) b
WHERE b.previous IS NOT NULL AND (b.first_position <> b.previous + 1 OR b.recorded_at < b.previous_at)
ORDER BY b.last_position LIMIT 100
