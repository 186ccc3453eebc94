-- Brings holds back as they were, unless there is one of that label. $1 log, and of each hold:
-- $2 entity key, $3 type, $4 id, $5 label, $6 reason, $7 principal, $8 operation, $9 when it was made,
-- in microseconds since the Unix epoch. Rows: entity_key and label of those that are back.
-- Index: holds_pkey.
INSERT INTO everstate.holds
  (log_id, entity_key, entity_type_id, entity_id, label, reason, principal, operation_id, held_at)
SELECT $1, w.key, w.type, w.id, w.label, w.reason, w.principal, w.operation,
  timestamptz '1970-01-01 00:00:00+00' + w.us / 1000000 * interval '1 second'
    + w.us % 1000000 * interval '1 microsecond'
FROM unnest($2::bigint[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[], $8::uuid[],
  $9::bigint[]) w(key, type, id, label, reason, principal, operation, us)
ON CONFLICT DO NOTHING
RETURNING entity_key, label
