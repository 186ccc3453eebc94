-- Events on the list, by position. $1 group, $2 entity type, $3 entity id, $4 event type (empty:
-- any), $5 positions (null: any), $6 part of the reason, $7 after this position, $8 rows at most.
-- Index: parked_events_pkey.
SELECT e.position, e.sequence, e.entity_type, e.entity_id, e.event_type, e.state, e.reason, e.attempts,
  e.parked_at, e.partition
FROM everstate.parked_events e
WHERE e.group_id = $1 AND e.position > $7
  AND ($2 = '' OR e.entity_type = $2) AND ($3 = '' OR e.entity_id = $3)
  AND ($4 = '' OR e.event_type = $4) AND ($5::bigint[] IS NULL OR e.position = ANY ($5::bigint[]))
  AND ($6 = '' OR strpos(e.reason, $6) > 0)
ORDER BY e.position LIMIT $8
