-- Nobody else changes a policy until the transaction ends; they can be read. No rows.
LOCK TABLE everstate.policies IN SHARE ROW EXCLUSIVE MODE
