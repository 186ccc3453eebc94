-- Audit events that are to be appended, in order. $1 rows at most; $2, $3 entity types and ids whose
-- events are left out, $4 single events that are.
-- Row: no, audit_id, entity_type, entity_id, type, data, principal, at. Index: audit_outbox_pkey.
SELECT a.no, a.audit_id, a.entity_type, a.entity_id, a.type, a.data, a.principal, a.at
FROM everstate.audit_outbox a
WHERE a.no <> ALL ($4::bigint[]) AND NOT EXISTS (
  SELECT FROM unnest($2::text[], $3::text[]) x(entity_type, entity_id)
  WHERE x.entity_type = a.entity_type AND x.entity_id = a.entity_id)
ORDER BY a.no LIMIT $1
