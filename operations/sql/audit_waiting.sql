-- Audit events that are to be appended, in order. $1 rows at most, $2 those that cannot be (left out).
-- Row: audit_id, entity_type, entity_id, type, data, principal, at. Index: audit_outbox_pkey.
SELECT a.audit_id, a.entity_type, a.entity_id, a.type, a.data, a.principal, a.at
FROM everstate.audit_outbox a WHERE a.audit_id <> ALL ($2::uuid[])
ORDER BY a.audit_id LIMIT $1
