-- A member is gone; what it had is free. $1 member, $2 group.
-- Index: group_members_pkey, group_partitions_pkey.
WITH gone AS (DELETE FROM everstate.group_members WHERE member_id = $1)
UPDATE everstate.group_partitions SET holder = NULL WHERE group_id = $2 AND holder = $1
