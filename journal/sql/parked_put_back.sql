-- Events are on the list again as they were, unless they are there. $1 group, $2 what
-- parked_take_off.sql gave of each. Rows: position, partition, entity_type, entity_id of those that
-- were not there. Index: parked_events_pkey, consumer_groups_pkey.
INSERT INTO everstate.parked_events
SELECT (jsonb_populate_record(NULL::everstate.parked_events, w.whole)).*
FROM unnest($2::jsonb[]) w(whole)
WHERE (w.whole ->> 'group_id')::bigint = $1
  AND EXISTS (SELECT FROM everstate.consumer_groups g WHERE g.group_id = $1)
ON CONFLICT DO NOTHING
RETURNING position, partition, entity_type, entity_id
