-- How many of an operation's items are not on the list any more as they were planned. $1 group,
-- $2 operation, $3 states that may be acted on. Row: gone.
-- Index: operation_items_pkey, parked_events_pkey.
SELECT count(*) AS gone FROM everstate.operation_items i
WHERE i.operation_id = $2 AND NOT EXISTS (
  SELECT FROM everstate.parked_events e
  WHERE e.group_id = $1 AND e.position = i.position AND e.state = ANY ($3::text[]))
