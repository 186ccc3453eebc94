-- Halts a segment at its position, with the reason; `resume` lets it go on.
-- $1 name, $2 version, $3 build, $4 segment, $5 position, $6 error.
-- Row: position; no row: it is elsewhere by now. Index: projection_checkpoints_pkey.
UPDATE everstate.projection_checkpoints c
SET state = 'halted', error = $6, updated_at = clock_timestamp()
WHERE c.name = $1 AND c.version = $2 AND c.build = $3 AND c.segment = $4 AND c.position = $5
  AND c.state = 'running'
RETURNING c.position
