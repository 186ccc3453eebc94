-- The head of a log, and its lowest position that can be read. $1 log. Index: primary key of batches.
SELECT b.last_position AS head, (SELECT min(c.first) FROM everstate.chunks c
  WHERE c.log_id = $1 AND c.state IN ('open', 'sealed', 'archived')) AS first
FROM everstate.batches b WHERE b.log_id = $1 ORDER BY b.last_position DESC LIMIT 1
