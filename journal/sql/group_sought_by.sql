-- Which operation moved a group last. $1 group. Row: sought_by; null: none, or a client did since.
-- Index: consumer_groups_pkey.
SELECT g.sought_by FROM everstate.consumer_groups g WHERE g.group_id = $1
