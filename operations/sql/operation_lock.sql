-- An operation, locked until the transaction ends, and the time now. $1 id, $2 without selection,
-- parameters and plan, which never change and may be large.
-- Row: `operations.model.OperationRow`, now. Every change of an operation begins with this; it comes
-- before all other locks. The time is taken after the wait for the lock. Index: operations_pkey.
WITH locked AS MATERIALIZED (
SELECT o.operation_id, o.kind, o.state, o.wish, coalesce(l.name, '') AS log, o.target,
  CASE WHEN $2 THEN '{}' ELSE o.selection END AS selection,
  CASE WHEN $2 THEN '{}' ELSE o.parameters END AS parameters,
  CASE WHEN $2 THEN '{}' ELSE o.plan END AS plan, o.digest, o.head, o.items, o.planned_by, o.planned_at, o.expires_at,
  o.applied_by, o.applied_at, o.reason, o.seconded_by, o.seconded_at, o.started_at, o.finished_at,
  o.undo_until, o.undone_by, o.undo_reason, o.rate, o.cursor, o.done, o.skipped, o.failed, o.undone,
  o.events, o.bytes, o.waits, o.note, o.error, o.updated_at, o.version, o.applied_key, o.retrying,
  o.items_gone
FROM everstate.operations o LEFT JOIN everstate.logs l ON l.log_id = o.log_id
WHERE o.operation_id = $1 FOR UPDATE OF o
)
SELECT x.*, clock_timestamp() AS now FROM locked x
