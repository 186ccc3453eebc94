-- An entity is held as long as it has a hold. $1 log, $2 entity keys, whose marks are locked.
-- Index: entity_marks_pkey, holds_pkey.
UPDATE everstate.entity_marks m SET held = NOT m.held
WHERE m.log_id = $1 AND m.entity_key = ANY ($2::bigint[]) AND m.held <> EXISTS (
  SELECT FROM everstate.holds h WHERE h.log_id = $1 AND h.entity_key = m.entity_key)
