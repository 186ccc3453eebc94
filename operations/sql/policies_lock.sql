-- Nobody else changes a policy until the transaction ends; policies can be read meanwhile. No rows.
-- Index: none.
LOCK TABLE everstate.policies IN SHARE ROW EXCLUSIVE MODE
