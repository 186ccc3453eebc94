-- Events are put aside; one that is on the list and failed again is parked again. $1 group,
-- $2 positions, $3 partitions, $4 sequences, $5 entity types, $6 entity ids, $7 event types,
-- $8 states, $9 reasons, $10 attempts. Rows: partitions of those that are new on the list.
-- Index: parked_events_pkey.
INSERT INTO everstate.parked_events AS e (group_id, position, partition, sequence, entity_type,
  entity_id, event_type, state, reason, attempts)
SELECT $1, w.* FROM unnest($2::bigint[], $3::int[], $4::bigint[], $5::text[], $6::text[], $7::text[],
  $8::text[], $9::text[], $10::int[]) w
ON CONFLICT (group_id, position) DO UPDATE SET state = excluded.state, reason = excluded.reason,
  attempts = e.attempts + excluded.attempts, parked_at = clock_timestamp(), due_at = '-infinity'
  WHERE excluded.state = 'parked'
RETURNING CASE WHEN e.xmax = 0 THEN e.partition END
