-- Which entities' oldest readable event is beyond a position.
-- $1 log, $2 entity keys, $3 their floors, $4 and $5 their first and last position, $6 the position.
-- Row: entity key. Index: unique (entity_key, seq) of the chunks.
SELECT w.key
FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) w(key, floor, first, last)
WHERE (
  SELECT x.position > $6::bigint
  FROM everstate.events x
  WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq >= w.floor
    AND x.position BETWEEN w.first AND w.last
  ORDER BY x.seq LIMIT 1)
