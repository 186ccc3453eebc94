-- How many audit events wait, counted up to a bound. $1 the bound. Row: count. Index: audit_outbox_pkey.
SELECT count(*) FROM (SELECT FROM everstate.audit_outbox a LIMIT $1) x
