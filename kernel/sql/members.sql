-- The processes, by member id (UUIDv7: by age). $1 after this member id, $2 how many,
-- $3 how long one may be silent and count as alive.
-- Row: the member, whether it is alive, its newest figures. Index: members_pkey, vitals_pkey.
SELECT m.member_id, m.kind, m.name, m.address, m.version, m.started_at, m.seen_at, m.details,
  m.seen_at > clock_timestamp() - $3::interval AS alive, v.at AS figures_at, v.figures
FROM everstate.members m
LEFT JOIN LATERAL (
  SELECT o.at, o.figures FROM everstate.vitals o WHERE o.member_id = m.member_id
  ORDER BY o.at DESC LIMIT 1) v ON true
WHERE m.member_id > $1 ORDER BY m.member_id LIMIT $2
