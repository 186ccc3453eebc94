-- Keeps an audit event for the log `_system`, in the transaction of what it tells of. Its number comes
-- from a sequence while the thing is locked, so changes of one thing are in order whichever process
-- made them and whatever the clock of the database said (after a failover it may be behind). Its id
-- is a UUIDv7 of that clock (RFC 9562, method 3: the microseconds fill `rand_a`).
-- $1 entity type, $2 entity id, $3 event type, $4 data, $5 principal. Index: audit_outbox_pkey.
INSERT INTO everstate.audit_outbox (audit_id, entity_type, entity_id, type, data, principal)
SELECT (lpad(to_hex(t.us / 1000), 12, '0') || '7' || lpad(to_hex(t.us % 1000 * 4096 / 1000), 3, '0')
    || substr(replace(gen_random_uuid()::text, '-', ''), 17))::uuid,
  $1, $2, $3, $4, $5
FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) t
