-- A process stops in an orderly way. $1 member id. Index: members_pkey.
DELETE FROM everstate.members m WHERE m.member_id = $1
