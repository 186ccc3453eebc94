-- Parked events are to be delivered again, not before a time. $1 group, $2 positions, $3 times.
-- Rows: position, partition, entity_type, entity_id of those that were parked.
-- Index: parked_events_pkey.
UPDATE everstate.parked_events p SET state = 'replaying', tries = 0, due_at = w.due
FROM unnest($2::bigint[], $3::timestamptz[]) w(position, due)
WHERE p.group_id = $1 AND p.position = w.position AND p.state = 'parked'
RETURNING p.position, p.partition, p.entity_type, p.entity_id
