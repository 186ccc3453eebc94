-- Forgets processes that have been silent for long, a hundred at once. $1 how long.
-- There is one row a process: read whole.
DELETE FROM everstate.members m
WHERE m.member_id = ANY (ARRAY(
  SELECT o.member_id FROM everstate.members o WHERE o.seen_at < clock_timestamp() - $1::interval
  ORDER BY o.member_id LIMIT 100 FOR UPDATE SKIP LOCKED))
