-- Keeps a process's figures of now. $1 member id, $2 figures. Index: vitals_pkey.
INSERT INTO everstate.vitals (at, member_id, figures) VALUES (clock_timestamp(), $1, $2)
ON CONFLICT (member_id, at) DO NOTHING
