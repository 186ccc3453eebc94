-- Forgets members of a group that have not been seen for long. $1 group, $2 so long.
-- Index: group_members_group.
DELETE FROM everstate.group_members m
WHERE m.group_id = $1 AND m.expires_at < clock_timestamp() - $2::interval
