-- How many events on the list a selection has, of how many entities, and how many held ones follow
-- when those are gone. $1 to $6: see group_parked.sql; $7 states that may be chosen.
-- Row: events, entities, held. Index: parked_events_pkey, parked_events_entity.
WITH chosen AS MATERIALIZED (
  SELECT e.position, e.entity_type, e.entity_id FROM everstate.parked_events e
  WHERE e.group_id = $1 AND e.state = ANY ($7::text[])
    AND ($2 = '' OR e.entity_type = $2) AND ($3 = '' OR e.entity_id = $3)
    AND ($4 = '' OR e.event_type = $4) AND ($5::bigint[] IS NULL OR e.position = ANY ($5::bigint[]))
    AND ($6 = '' OR strpos(e.reason, $6) > 0)
), entities AS MATERIALIZED (
  SELECT c.entity_type, c.entity_id, (
    SELECT min(x.position) FROM everstate.parked_events x
    WHERE x.group_id = $1 AND x.entity_type = c.entity_type AND x.entity_id = c.entity_id
      AND x.state = 'parked' AND NOT EXISTS (SELECT FROM chosen y WHERE y.position = x.position)
    ) AS blocked
  FROM chosen c GROUP BY c.entity_type, c.entity_id
)
SELECT (SELECT count(*) FROM chosen) AS events, (SELECT count(*) FROM entities) AS entities,
  (SELECT count(*) FROM entities n JOIN everstate.parked_events h ON h.group_id = $1
    AND h.entity_type = n.entity_type AND h.entity_id = n.entity_id AND h.state = 'held'
    AND (n.blocked IS NULL OR h.position < n.blocked)
    AND NOT EXISTS (SELECT FROM chosen y WHERE y.position = h.position)) AS held
