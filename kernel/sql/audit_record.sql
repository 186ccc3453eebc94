-- Keeps an audit event for the log `_system`, in the transaction of what it tells of.
-- $1 audit id, $2 entity type, $3 entity id, $4 event type, $5 data, $6 principal. Index: audit_outbox_pkey.
INSERT INTO everstate.audit_outbox (audit_id, entity_type, entity_id, type, data, principal)
VALUES ($1, $2, $3, $4, $5, $6)
