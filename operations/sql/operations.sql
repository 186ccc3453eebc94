-- Operations, newest first, or one of them. $1 this id only (null: all), $2 older than this id (null:
-- from the newest on), $3 states (null: any), $4 rows at most, $5 without selection, parameters and
-- plan, which never change and may be large.
-- Row: `operations.model.OperationRow`. Of all, a selection of many entities says how many there are,
-- not which. Index: operations_pkey.
SELECT o.operation_id, o.kind, o.state, o.wish, coalesce(l.name, '') AS log, o.target,
  CASE WHEN $5 THEN '{}' WHEN $1::uuid IS NULL AND o.selection ? 'entities'
      AND jsonb_array_length(o.selection -> 'entities') > 10
    THEN o.selection - 'entities'
      || jsonb_build_object('entities_count', jsonb_array_length(o.selection -> 'entities'))
    ELSE o.selection END AS selection,
  CASE WHEN $5 THEN '{}' ELSE o.parameters END AS parameters,
  CASE WHEN $5 THEN '{}' ELSE o.plan END AS plan, o.digest, o.head, o.items, o.planned_by, o.planned_at, o.expires_at,
  o.applied_by, o.applied_at, o.reason, o.seconded_by, o.seconded_at, o.started_at, o.finished_at,
  o.undo_until, o.undone_by, o.undo_reason, o.rate, o.cursor, o.done, o.skipped, o.failed, o.undone,
  o.events, o.bytes, o.waits, o.note, o.error, o.updated_at, o.version, o.applied_key, o.retrying,
  o.items_gone
FROM everstate.operations o LEFT JOIN everstate.logs l ON l.log_id = o.log_id
WHERE ($1::uuid IS NULL OR o.operation_id = $1) AND ($2::uuid IS NULL OR o.operation_id < $2)
  AND ($3::text[] IS NULL OR o.state = ANY ($3))
ORDER BY o.operation_id DESC LIMIT $4
