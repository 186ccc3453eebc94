-- What is known of a request with an idempotency key. $1 principal, $2 key.
-- Row: digest of the request, status (null: not done), body. Index: request_results_pkey.
SELECT r.digest, r.status, r.body FROM everstate.request_results r
WHERE r.principal = $1 AND r.key = $2
