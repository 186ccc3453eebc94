-- Removes the announcements of workers that ended long ago: every worker has names of its own.
-- $1 the time before which they ran out. Index: leases_pkey.
DELETE FROM everstate.leases WHERE kind = 'worker' AND expires_at < $1
