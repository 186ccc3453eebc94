-- What is registered of these folds. $1 entity types, $2 versions (an array each).
-- Row: entity_type, version, digest, registered_at. Index: folds_pkey.
SELECT f.entity_type, f.version, f.digest, f.registered_at
FROM unnest($1::text[], $2::int[]) w(entity_type, version)
CROSS JOIN LATERAL (
  SELECT x.entity_type, x.version, x.digest, x.registered_at FROM everstate.folds x
  WHERE x.entity_type = w.entity_type AND x.version = w.version LIMIT 1) f
