-- Keeps an event that a build passes over; in the transaction that moves the checkpoint past it.
-- $1 name, $2 version, $3 build, $4 position, $5 segment, $6 entity type, $7 entity id, $8 event
-- type, $9 error, $10 attempts, $11 how many a build may have at most.
-- Row: position; no row: there are too many. Index: projection_parked_pkey.
INSERT INTO everstate.projection_parked
  (name, version, build, position, segment, entity_type, entity_id, event_type, error, attempts)
SELECT $1::text, $2, $3, $4, $5, $6, $7, $8, $9, $10
WHERE (SELECT count(*) FROM everstate.projection_parked k
       WHERE k.name = $1 AND k.version = $2 AND k.build = $3) < $11
ON CONFLICT (name, version, build, position) DO UPDATE
SET error = excluded.error, attempts = excluded.attempts, parked_at = clock_timestamp()
RETURNING position
