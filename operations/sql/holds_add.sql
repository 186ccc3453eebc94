-- Holds entities under a label, unless they are. $1 log, $2 entity keys, $3 their types, $4 their
-- ids, $5 label, $6 reason, $7 principal, $8 operation. Rows: keys of those that were not.
-- Index: holds_pkey.
INSERT INTO everstate.holds
  (log_id, entity_key, entity_type_id, entity_id, label, reason, principal, operation_id)
SELECT $1, w.key, w.type, w.id, $5, $6, $7, $8
FROM unnest($2::bigint[], $3::int[], $4::text[]) w(key, type, id)
ON CONFLICT DO NOTHING
RETURNING entity_key
