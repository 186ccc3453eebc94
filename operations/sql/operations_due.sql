-- Operations that a worker may take, oldest first. $1 rows at most, $2 beyond this id.
-- Row: operation_id, kind, log. Index: operations_active.
SELECT o.operation_id, o.kind, o.state, coalesce(l.name, '') AS log
FROM everstate.operations o LEFT JOIN everstate.logs l ON l.log_id = o.log_id
WHERE o.state IN ('queued', 'running', 'undoing') AND o.operation_id > $2
  AND NOT EXISTS (
    SELECT FROM everstate.leases x WHERE x.kind = 'operation' AND x.name = o.operation_id::text
      AND x.expires_at > clock_timestamp())
ORDER BY o.operation_id LIMIT $1
