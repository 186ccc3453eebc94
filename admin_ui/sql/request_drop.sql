-- Forgets a request that changed nothing, so that it may be sent again. $1 principal, $2 key.
-- Index: request_results_pkey.
DELETE FROM everstate.request_results r
WHERE r.principal = $1 AND r.key = $2 AND r.status IS NULL
