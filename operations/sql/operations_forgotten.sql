-- Operations whose items nobody needs any more: they ended, and the time for undo is past. $1 how long
-- items are kept where nothing can be undone, $2 the same of plans that never acted, $3 rows at most.
-- Row: operation_id. Index: operations_items_kept.
SELECT o.operation_id FROM everstate.operations o
WHERE o.items_left AND o.state IN ('expired', 'review', 'done', 'failed', 'cancelled', 'undone')
  AND coalesce(o.undo_until, o.finished_at
    + CASE WHEN o.started_at IS NULL THEN $2::interval ELSE $1::interval END) <= clock_timestamp()
ORDER BY o.operation_id LIMIT $3
