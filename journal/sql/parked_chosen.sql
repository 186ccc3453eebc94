-- Events on the list that an operation may be about, by position. $1 group, $2 and $3 the first and
-- last position, $4 entity types (null: any), $5 and $6 types and ids of entities (null: any), $7 event
-- type (empty: any), $8 part of the reason (empty: any), $9 positions (null: any), $10 rows at most.
-- Row: position, sequence, entity_type, entity_id, event_type, state, reason, attempts.
-- Index: parked_events_pkey.
SELECT e.position, e.sequence, e.entity_type, e.entity_id, e.event_type, e.state, e.reason, e.attempts
FROM everstate.parked_events e
WHERE e.group_id = $1 AND e.position BETWEEN $2 AND $3
  AND ($4::text[] IS NULL OR e.entity_type = ANY ($4::text[]))
  AND ($5::text[] IS NULL OR EXISTS (
    SELECT FROM unnest($5::text[], $6::text[]) w(type, id)
    WHERE w.type = e.entity_type AND w.id = e.entity_id))
  AND ($7 = '' OR e.event_type = $7) AND ($8 = '' OR strpos(e.reason, $8) > 0)
  AND ($9::bigint[] IS NULL OR e.position = ANY ($9::bigint[]))
ORDER BY e.position LIMIT $10
