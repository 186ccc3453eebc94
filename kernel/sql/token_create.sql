-- A new token; no row: a token of this name is neither revoked nor expired. The name of an expired
-- one is free: it is revoked on the way.
-- $1 token id, $2 name, $3 SHA-256 of the token, $4 role, $5 grants, $6 by whom, $7 how long it is
-- valid. Row: the token. Index: tokens_name.
WITH freed AS (
  UPDATE everstate.tokens t SET revoked_at = clock_timestamp(), revoked_by = 'expiry'
  WHERE t.name = $2 AND t.revoked_at IS NULL AND t.expires_at <= clock_timestamp()
  RETURNING t.token_id
), made AS (
  -- Reading `freed` makes it happen first; the partial unique index sees its update.
  INSERT INTO everstate.tokens AS n (token_id, name, digest, role, grants, created_by, expires_at)
  SELECT $1, $2, $3, $4, $5, $6, clock_timestamp() + $7::interval
  FROM (SELECT count(*) FROM freed) f
  ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING
  RETURNING n.*
)
SELECT m.token_id, m.name, m.role, m.grants, m.created_at, m.created_by, m.expires_at,
  m.revoked_at, m.revoked_by, m.last_used_at
FROM made m
