-- Keeps why a segment does not get on though it has not halted, for who looks at it; the next commit
-- clears it. $1 name, $2 version, $3 build, $4 segment, $5 position, $6 error.
-- Row: position; no row: it is elsewhere by now. Index: projection_checkpoints_pkey.
UPDATE everstate.projection_checkpoints c SET error = $6
WHERE c.name = $1 AND c.version = $2 AND c.build = $3 AND c.segment = $4 AND c.position = $5
  AND c.state = 'running'
RETURNING c.position
