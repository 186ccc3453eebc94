-- Events leave the list. $1 group, $2 positions. Rows: partitions of those that were on it, and
-- their entities. Index: parked_events_pkey.
DELETE FROM everstate.parked_events e WHERE e.group_id = $1 AND e.position = ANY ($2::bigint[])
RETURNING e.partition, e.entity_type, e.entity_id
