-- What a replay needs to know of a version. $1 name, $2 version, $3 build.
-- Row: replayable, entity_types, head, running (id of a replay that runs).
-- Index: projection_versions_pkey, batches_pkey, projection_replays_running.
SELECT v.replayable, v.entity_types, h.last_position AS head, r.replay_id AS running
FROM everstate.projection_versions v
CROSS JOIN LATERAL (
  SELECT b.last_position FROM everstate.batches b
  WHERE b.log_id = v.log_id ORDER BY b.last_position DESC LIMIT 1
) h
LEFT JOIN everstate.projection_replays r ON r.name = v.name AND r.version = v.version
  AND r.build = $3 AND r.state = 'running'
WHERE v.name = $1 AND v.version = $2
