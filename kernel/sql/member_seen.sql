-- Registers a process, or says that it is still there; one whose row was taken for gone and removed
-- gets it back. $1 member id, $2 kind, $3 name, $4 address, $5 version, $6 started at (null: now),
-- $7 details. Row: started_at. Index: members_pkey.
INSERT INTO everstate.members AS m (member_id, kind, name, address, version, started_at, details)
VALUES ($1, $2, $3, $4, $5, coalesce($6, clock_timestamp()), $7)
ON CONFLICT (member_id) DO UPDATE SET seen_at = clock_timestamp(), details = excluded.details,
  address = excluded.address
RETURNING m.started_at
