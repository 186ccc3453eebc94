-- Deletes a group with all that is its own. $1 group. Row: parked events that went with it; no row:
-- there is none. Index: consumer_groups_pkey, parked_events_pkey.
WITH gone AS (DELETE FROM everstate.consumer_groups WHERE group_id = $1 RETURNING group_id)
SELECT (SELECT count(*) FROM everstate.parked_events e WHERE e.group_id = g.group_id) FROM gone g
