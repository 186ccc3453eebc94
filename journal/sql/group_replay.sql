-- Parked events are to be delivered again, the first at a time, the others after it at a pace.
-- $1 to $8: see group_parked.sql; $9 the first's time, $10 seconds between two. Rows: position,
-- partition, entity_type, entity_id. Index: parked_events_pkey.
UPDATE everstate.parked_events p SET state = 'replaying', tries = 0,
  due_at = $9::timestamptz + c.n * $10::float8 * interval '1 second'
FROM (
  SELECT e.position, row_number() OVER (ORDER BY e.position) - 1 AS n
  FROM everstate.parked_events e
  WHERE e.group_id = $1 AND e.position > $7 AND e.state = 'parked'
    AND ($2 = '' OR e.entity_type = $2) AND ($3 = '' OR e.entity_id = $3)
    AND ($4 = '' OR e.event_type = $4) AND ($5::bigint[] IS NULL OR e.position = ANY ($5::bigint[]))
    AND ($6 = '' OR strpos(e.reason, $6) > 0)
  ORDER BY e.position LIMIT $8) c
WHERE p.group_id = $1 AND p.position = c.position
RETURNING p.position, p.partition, p.entity_type, p.entity_id
