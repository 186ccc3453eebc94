-- Takes a lease that is free, has run out, or is the holder's already; the epoch grows with every
-- new holding. $1 kind, $2 name, $3 holder, $4 term.
-- Row: epoch, expires_at; no row: somebody else holds it. Index: leases_pkey.
INSERT INTO everstate.leases AS l (kind, name, holder, epoch, acquired_at, expires_at)
VALUES ($1, $2, $3, 1, clock_timestamp(), clock_timestamp() + $4::interval)
ON CONFLICT (kind, name) DO UPDATE SET holder = excluded.holder, epoch = l.epoch + 1,
  acquired_at = excluded.acquired_at, expires_at = excluded.expires_at
  WHERE l.expires_at <= clock_timestamp() OR l.holder = excluded.holder
RETURNING epoch, expires_at
