-- Which of these entities have a hold. $1 log, $2 entity keys, $3 its label (null: any).
-- Rows: entity_key. Index: holds_pkey.
SELECT DISTINCT h.entity_key FROM everstate.holds h
WHERE h.log_id = $1 AND h.entity_key = ANY ($2::bigint[]) AND ($3::text IS NULL OR h.label = $3)
