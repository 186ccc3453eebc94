-- The heads of some logs. $1 log ids. Row: log_id, head. Index: primary key of batches.
SELECT l.id AS log_id, b.last_position AS head
FROM unnest($1::int[]) l(id)
CROSS JOIN LATERAL (
  SELECT x.last_position FROM everstate.batches x
  WHERE x.log_id = l.id ORDER BY x.last_position DESC LIMIT 1) b
