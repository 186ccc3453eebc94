-- Gives a lease back: it has run out from now on. The row stays, so that its epoch never repeats.
-- $1 kind, $2 name, $3 holder, $4 epoch. Index: leases_pkey.
UPDATE everstate.leases SET expires_at = clock_timestamp()
WHERE kind = $1 AND name = $2 AND holder = $3 AND epoch = $4 AND expires_at > clock_timestamp()
RETURNING epoch
