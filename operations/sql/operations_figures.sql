-- Operations that have not ended, for metrics. Row: kind, state, count. Parameters: none.
-- Index: operations_active, operations_unapplied.
SELECT o.kind, o.state, count(*) FROM everstate.operations o
WHERE o.state IN ('queued', 'running', 'paused', 'undoing') GROUP BY o.kind, o.state
UNION ALL
SELECT o.kind, o.state, count(*) FROM everstate.operations o
WHERE o.state IN ('planned', 'awaiting') GROUP BY o.kind, o.state
