-- Deletes audit events that are in the log `_system`. $1 their ids. Index: audit_outbox_pkey.
DELETE FROM everstate.audit_outbox WHERE audit_id = ANY ($1::uuid[])
