-- A member comes. $1 member, $2 group, $3 its name, $4 node, $5 term. Index: group_members_pkey.
INSERT INTO everstate.group_members (member_id, group_id, name, node, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + $5::interval)
