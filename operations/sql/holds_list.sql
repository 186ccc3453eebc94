-- Holds of a log by label, type and id. $1 log, $2 label (empty: every one), $3 label, $4 entity type
-- and $5 entity id of the hold to go on after (empty: from the first on), $6 rows at most.
-- Row: `operations.holds.HoldRow`. Index: holds_label, entity_types_pkey, entity_types_name_key.
SELECT t.name AS entity_type, h.entity_id, h.label, h.reason, h.principal,
  'op-' || h.operation_id::text AS operation, h.held_at
FROM everstate.holds h
JOIN everstate.entity_types t ON t.type_id = h.entity_type_id
WHERE h.log_id = $1 AND ($2 = '' OR h.label = $2)
  AND (h.label, h.entity_type_id, h.entity_id) > ($3, coalesce((
    SELECT x.type_id FROM everstate.entity_types x WHERE x.name = $4), 0), $5)
ORDER BY h.label, h.entity_type_id, h.entity_id LIMIT $6
