-- Where a segment stands. $1 name, $2 version, $3 build, $4 segment. Row: position.
-- Index: projection_checkpoints_pkey.
SELECT c.position FROM everstate.projection_checkpoints c
WHERE c.name = $1 AND c.version = $2 AND c.build = $3 AND c.segment = $4
