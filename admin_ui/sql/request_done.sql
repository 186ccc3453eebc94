-- Keeps the answer of a request. $1 principal, $2 key, $3 status, $4 body.
-- Index: request_results_pkey.
UPDATE everstate.request_results r SET status = $3, body = $4
WHERE r.principal = $1 AND r.key = $2 AND r.status IS NULL
