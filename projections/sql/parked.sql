-- Parked events of a version. $1 name, $2 version, $3 positions after this one, $4 rows at most.
-- Row: `projections.control.ParkedRow`. Index: projection_parked_pkey.
SELECT k.position, k.segment, k.entity_type, k.entity_id, k.event_type, k.error, k.attempts, k.parked_at
FROM everstate.projection_parked k
WHERE k.name = $1 AND k.version = $2 AND k.position > $3
ORDER BY k.position LIMIT $4
