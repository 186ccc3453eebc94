-- Takes an order out of the list, to make the build in the same transaction. $1 name, $2 version,
-- $3 build. Row: auto_switch, operation_id, log_id's head; no row: another worker makes it, or it
-- was discarded.
-- Index: projection_builds_pkey, batches_pkey.
WITH o AS (
  SELECT d.name, d.version, d.build FROM everstate.projection_builds d
  WHERE d.name = $1 AND d.version = $2 AND d.build = $3 AND d.state = 'ordered'
  FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM everstate.projection_builds d USING o
  WHERE d.name = o.name AND d.version = o.version AND d.build = o.build
  RETURNING d.name, d.version, d.auto_switch, d.operation_id
)
SELECT gone.auto_switch, gone.operation_id, h.last_position AS head
FROM gone
JOIN everstate.projection_versions v ON v.name = gone.name AND v.version = gone.version
CROSS JOIN LATERAL (
  SELECT b.last_position FROM everstate.batches b
  WHERE b.log_id = v.log_id ORDER BY b.last_position DESC LIMIT 1
) h
