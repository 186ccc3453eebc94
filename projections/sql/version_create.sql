-- A new version. $1 name, $2 version, $3 kind, $4 digest, $5 source, $6 log, $7 entity types, $8 event
-- types, $9 segments, $10 poison policy, $11 whether entities can be replayed.
-- Row: log_id, head of the log; no row: there is no such log. Index: logs_name_key, batches_pkey.
INSERT INTO everstate.projection_versions (name, version, kind, digest, source, log_id, entity_types,
  event_types, segments, on_poison, replayable)
SELECT $1, $2, $3, $4, $5, l.log_id, $7, $8, $9, $10, $11 FROM everstate.logs l WHERE l.name = $6
RETURNING log_id, (
  SELECT b.last_position FROM everstate.batches b WHERE b.log_id = projection_versions.log_id
  ORDER BY b.last_position DESC LIMIT 1
) AS head
