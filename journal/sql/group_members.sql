-- The members of a group that are there, in the order of joining. $1 group, $2 rows at most.
-- Row: member_id, name, node, joined_at. Index: group_members_group.
SELECT m.member_id, m.name, m.node, m.joined_at FROM everstate.group_members m
WHERE m.group_id = $1 AND m.expires_at > clock_timestamp()
ORDER BY m.joined_at, m.member_id LIMIT $2
