-- The leases of a kind, also those that ran out. $1 kind, $2 prefix of the names.
-- Index: leases_pkey.
SELECT l.name, l.holder, l.epoch, l.acquired_at, l.expires_at, l.expires_at > clock_timestamp() AS held
FROM everstate.leases l WHERE l.kind = $1 AND starts_with(l.name, $2) ORDER BY l.name
