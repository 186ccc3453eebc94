-- Events leave the list. $1 group, $2 positions. Rows: position, partition, entity_type, entity_id,
-- and whole, as parked_put_back.sql takes it. Index: parked_events_pkey.
DELETE FROM everstate.parked_events p
WHERE p.group_id = $1 AND p.position = ANY ($2::bigint[])
RETURNING p.position, p.partition, p.entity_type, p.entity_id, to_jsonb(p)::text AS whole
