-- Deletes a group with all that is its own. $1 name. Row: group_id, parked events that went with it;
-- no row: there is none. Index: consumer_groups_name_key, parked_events_pkey.
WITH gone AS (DELETE FROM everstate.consumer_groups WHERE name = $1 RETURNING group_id)
SELECT g.group_id, (SELECT count(*) FROM everstate.parked_events e WHERE e.group_id = g.group_id)
FROM gone g
