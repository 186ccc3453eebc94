-- The last statement before a commit of leased work: holds the lease against takers until the
-- transaction ends. No row: another holder has it, and the transaction has to be rolled back.
-- $1 kind, $2 name, $3 holder, $4 epoch. Index: leases_pkey.
SELECT l.epoch FROM everstate.leases l
WHERE l.kind = $1 AND l.name = $2 AND l.holder = $3 AND l.epoch = $4 FOR SHARE
