-- Makes a fold known, unless its version is. $1 entity type, $2 version, $3 digest, $4 snapshot type,
-- $5 content type. Row: digest and registered_at as they are registered now, made (whether by this
-- statement). Index: folds_pkey.
WITH made AS (
  INSERT INTO everstate.folds AS f (entity_type, version, digest, snapshot_type, content_type)
  VALUES ($1, $2, $3, $4, $5)
  ON CONFLICT (entity_type, version) DO UPDATE SET digest = f.digest
  RETURNING f.digest, f.registered_at, f.xmax = 0 AS made)
SELECT m.digest, m.registered_at, m.made FROM made m
