-- Says why an operation does not get on. $1 id, $2 why (empty: it gets on).
-- Row: version; no row: it says so already, or does not run. Index: operations_pkey.
UPDATE everstate.operations
SET waits = $2, version = version + 1, updated_at = clock_timestamp()
WHERE operation_id = $1 AND waits <> $2 AND state IN ('queued', 'running', 'undoing')
RETURNING version
