-- Notes that a build's schema is gone, and forgets its segments, their leases and its parked events.
-- $1 name, $2 version, $3 build. Row: build.
-- Index: projection_checkpoints_pkey, projection_parked_pkey, leases_pkey, projection_builds_pkey.
WITH gone AS (
  DELETE FROM everstate.projection_checkpoints c
  WHERE c.name = $1 AND c.version = $2 AND c.build = $3
  RETURNING c.name || '/' || c.version || '/' || c.build || '/' || c.segment AS lease
), leases AS (
  DELETE FROM everstate.leases l USING gone g WHERE l.kind = 'segment' AND l.name = g.lease
), parked AS (
  DELETE FROM everstate.projection_parked k WHERE k.name = $1 AND k.version = $2 AND k.build = $3
)
UPDATE everstate.projection_builds d SET dropped_at = clock_timestamp()
WHERE d.name = $1 AND d.version = $2 AND d.build = $3
RETURNING d.build
