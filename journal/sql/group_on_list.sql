-- Which of these positions are on the list, to be replayed. $1 group, $2 positions.
-- Index: parked_events_pkey.
SELECT e.position FROM everstate.parked_events e
WHERE e.group_id = $1 AND e.position = ANY ($2::bigint[]) AND e.state = 'replaying'
