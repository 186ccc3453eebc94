-- All logs with their heads, by name; $1 a name, or null for all. A log is a heavy thing: there are few.
-- Index: primary key of batches, backwards; chunks by primary key.
SELECT l.name, l.log_id, l.chunk_size, b.last_position AS head, b.recorded_at, b.bytes_total,
  b.last_entity_key, c.first, c.chunks, c.ahead
FROM everstate.logs l
JOIN LATERAL (SELECT x.* FROM everstate.batches x WHERE x.log_id = l.log_id
  ORDER BY x.last_position DESC LIMIT 1) b ON true
JOIN LATERAL (SELECT min(x.first) AS first, count(*) AS chunks,
    count(*) FILTER (WHERE x.first > b.last_position + 1) AS ahead
  FROM everstate.chunks x WHERE x.log_id = l.log_id AND x.state IN ('open', 'sealed', 'archived')) c ON true
WHERE $1::text IS NULL OR l.name = $1
ORDER BY l.name
