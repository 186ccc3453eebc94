-- Begins a request with an idempotency key; a key whose work was left behind may be begun again.
-- $1 principal, $2 key, $3 digest of the request, $4 how long the work may take.
-- Row: true; no row: it was begun or done before. Index: request_results_pkey.
INSERT INTO everstate.request_results AS r (principal, key, digest, locked_until)
VALUES ($1, $2, $3, clock_timestamp() + $4::interval)
ON CONFLICT (principal, key) DO UPDATE SET locked_until = excluded.locked_until
  WHERE r.status IS NULL AND r.locked_until <= clock_timestamp() AND r.digest = excluded.digest
RETURNING true AS begun
