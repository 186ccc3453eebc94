-- Ends holds on entities. $1 log, $2 entity keys, $3 label (null: every one), $4 the operation that
-- made it (null: any). Rows: what `holds_restore` takes. Index: holds_pkey.
DELETE FROM everstate.holds h
WHERE h.log_id = $1 AND h.entity_key = ANY ($2::bigint[]) AND ($3::text IS NULL OR h.label = $3)
  AND ($4::uuid IS NULL OR h.operation_id = $4)
RETURNING h.entity_key, h.label, h.reason, h.principal, h.operation_id::text AS operation_id,
  (extract(epoch FROM h.held_at) * 1000000)::bigint AS held_at_us
