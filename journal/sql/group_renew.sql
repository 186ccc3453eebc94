-- Members are still there. $1 members, $2 term. Rows: those that were known.
-- Index: group_members_pkey.
UPDATE everstate.group_members SET expires_at = clock_timestamp() + $2::interval
WHERE member_id = ANY ($1::uuid[]) RETURNING member_id
