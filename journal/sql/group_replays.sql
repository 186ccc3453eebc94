-- Events of a partition that are to be delivered again now. $1 group, $2 partition, $3 positions
-- that are being delivered, $4 rows at most. Row: position, failures so far. Index: parked_events_replaying, parked_events_entity.
SELECT e.position, e.tries FROM everstate.parked_events e
WHERE e.group_id = $1 AND e.partition = $2 AND e.state = 'replaying'
  AND e.due_at <= clock_timestamp() AND e.position <> ALL ($3::bigint[])
  AND NOT EXISTS (SELECT FROM everstate.parked_events x
    WHERE x.group_id = $1 AND x.entity_type = e.entity_type AND x.entity_id = e.entity_id
      AND x.position < e.position AND x.state = 'replaying' AND x.due_at > clock_timestamp())
ORDER BY e.position LIMIT $4
