-- The token of a digest, whatever its state. $1 SHA-256 of the token.
-- Row: the token, the database's time, and whether its last use should be noted again.
-- Index: tokens_digest_key.
SELECT t.token_id, t.name, t.digest, t.role, t.grants, t.created_at, t.created_by, t.expires_at,
  t.revoked_at, t.revoked_by, t.last_used_at, clock_timestamp() AS now,
  coalesce(t.last_used_at < clock_timestamp() - interval '5 minutes', true) AS stale
FROM everstate.tokens t WHERE t.digest = $1
