-- Entities whose head disagrees with their events, among one of $4 parts (by entity key, part $5).
-- $1 log, $2 first readable position, $3 head. Row: entity, head's and events' figures.
-- Reads all events of the log once a part; the caller bounds a part's entities. A floor moves nothing
-- here: what lies below it is in the log until chunks are rewritten.
SELECT t.name AS entity_type, n.entity_id, n.last_seq, n.event_count, f.events, f.lo, f.hi
FROM (
  SELECT e.entity_key, count(*) AS events, min(e.seq) AS lo, max(e.seq) AS hi,
    min(e.position) AS first_position, max(e.position) AS last_position
  FROM everstate.events e
  WHERE e.log_id = $1 AND e.position BETWEEN $2 AND $3 AND e.entity_key % $4::bigint = $5::bigint
  GROUP BY e.entity_key
) f
FULL JOIN (SELECT x.* FROM everstate.entities x
  WHERE x.log_id = $1 AND x.entity_key % $4::bigint = $5::bigint AND x.first_position <= $3) n
  ON n.entity_key = f.entity_key
LEFT JOIN everstate.entity_types t ON t.type_id = n.type_id
WHERE n.entity_key IS NULL OR f.entity_key IS NULL
  OR f.hi - f.lo + 1 <> f.events
  OR (n.last_position <= $3 AND (n.last_seq <> f.hi OR n.last_position <> f.last_position))
  OR f.lo <> n.last_seq - n.event_count + 1
LIMIT 100
