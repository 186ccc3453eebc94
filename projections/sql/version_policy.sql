-- Changes what happens to events that cannot be applied. $1 name, $2 version, $3 policy.
-- Index: projection_versions_pkey.
UPDATE everstate.projection_versions SET on_poison = $3 WHERE name = $1 AND version = $2
