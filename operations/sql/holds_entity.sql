-- Holds on an entity by label. $1 log, $2 entity type, $3 entity id, $4 after this label, $5 rows at
-- most. Row: `operations.holds.HoldRow`. Index: entity_types_name_key, entities_pkey, holds_pkey.
SELECT t.name AS entity_type, h.entity_id, h.label, h.reason, h.principal,
  'op-' || h.operation_id::text AS operation, h.held_at
FROM everstate.entity_types t
JOIN everstate.entities e ON e.log_id = $1 AND e.type_id = t.type_id AND e.entity_id = $3
JOIN everstate.holds h ON h.log_id = $1 AND h.entity_key = e.entity_key
WHERE t.name = $2 AND h.label > $4
ORDER BY h.label LIMIT $5
