-- Prolongs the leases that the holder still has, also those that ran out and that nobody took.
-- $1 kind, $2 names, $3 epochs, $4 holder, $5 term.
-- Rows: name, expires_at of those that were prolonged. Index: leases_pkey.
UPDATE everstate.leases l SET expires_at = clock_timestamp() + $5::interval
FROM unnest($2::text[], $3::bigint[]) w(name, epoch)
WHERE l.kind = $1 AND l.name = w.name AND l.epoch = w.epoch AND l.holder = $4
RETURNING l.name, l.expires_at
