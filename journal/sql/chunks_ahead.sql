-- Chunks of each log that are wholly ahead of its head. Index: primary keys of batches and chunks.
SELECT l.log_id, l.name, (SELECT count(*) FROM everstate.chunks c
    WHERE c.log_id = l.log_id AND c.state = 'open' AND c.first > b.last_position + 1) AS ahead,
  l.chunk_size
FROM everstate.logs l
JOIN LATERAL (SELECT x.last_position FROM everstate.batches x WHERE x.log_id = l.log_id
  ORDER BY x.last_position DESC LIMIT 1) b ON true
