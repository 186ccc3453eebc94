-- Replays that failed, and how often. $1 group, $2 positions, $3 failures.
-- Index: parked_events_pkey.
UPDATE everstate.parked_events e SET tries = w.tries
FROM unnest($2::bigint[], $3::int[]) w(position, tries)
WHERE e.group_id = $1 AND e.position = w.position
