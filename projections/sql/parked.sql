-- Parked events of a build. $1 name, $2 version, $3 build, $4 positions after this one, $5 rows at
-- most. Row: `projections.control.ParkedRow`. Index: projection_parked_pkey.
SELECT k.position, k.segment, k.entity_type, k.entity_id, k.event_type, k.error, k.attempts, k.parked_at
FROM everstate.projection_parked k
WHERE k.name = $1 AND k.version = $2 AND k.build = $3 AND k.position > $4
ORDER BY k.position LIMIT $5
