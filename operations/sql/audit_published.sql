-- Deletes audit events that are in the log `_system`. $1 their numbers. Index: audit_outbox_pkey.
DELETE FROM everstate.audit_outbox WHERE no = ANY ($1::bigint[])
