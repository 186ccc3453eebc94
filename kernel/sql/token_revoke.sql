-- Ends a token, by its id, or else the one of a name that is not revoked yet.
-- $1 token id or null, $2 name, $3 by whom.
-- Row: the token; one that was revoked before (by id) stays as it is. Index: tokens_pkey, tokens_name.
UPDATE everstate.tokens t SET revoked_at = coalesce(t.revoked_at, clock_timestamp()),
  revoked_by = coalesce(t.revoked_by, $3)
WHERE t.token_id = coalesce($1::uuid, (
  SELECT o.token_id FROM everstate.tokens o WHERE o.name = $2
  ORDER BY o.revoked_at DESC NULLS FIRST LIMIT 1))
RETURNING t.token_id, t.name, t.role, t.grants, t.created_at, t.created_by, t.expires_at,
  t.revoked_at, t.revoked_by, t.last_used_at
