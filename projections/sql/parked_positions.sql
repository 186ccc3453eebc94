-- Positions that a build passed over, of one entity. $1 name, $2 version, $3 build, $4 entity type,
-- $5 entity id. Row: position. Index: projection_parked_pkey; a build has 10,000 at most.
SELECT k.position FROM everstate.projection_parked k
WHERE k.name = $1 AND k.version = $2 AND k.build = $3 AND k.entity_type = $4 AND k.entity_id = $5
