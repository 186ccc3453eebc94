-- Forgets answers older than a day, a hundred at once. $1 how old. Index: request_results_began_at.
DELETE FROM everstate.request_results r
WHERE r.ctid = ANY (ARRAY(
  SELECT o.ctid FROM everstate.request_results o WHERE o.began_at < clock_timestamp() - $1::interval
  ORDER BY o.began_at LIMIT 100 FOR UPDATE SKIP LOCKED))
