-- How many entities the events of parked_chosen.sql have. $1 to $9: as there; $10 states.
-- Row: entities. Index: parked_events_pkey.
SELECT count(DISTINCT (e.entity_type, e.entity_id)) AS entities
FROM everstate.parked_events e
WHERE e.group_id = $1 AND e.position BETWEEN $2 AND $3 AND e.state = ANY ($10::text[])
  AND ($4::text[] IS NULL OR e.entity_type = ANY ($4::text[]))
  AND ($5::text[] IS NULL OR EXISTS (
    SELECT FROM unnest($5::text[], $6::text[]) w(type, id)
    WHERE w.type = e.entity_type AND w.id = e.entity_id))
  AND ($7 = '' OR e.event_type = $7) AND ($8 = '' OR strpos(e.reason, $8) > 0)
  AND ($9::bigint[] IS NULL OR e.position = ANY ($9::bigint[]))
