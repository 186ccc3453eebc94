-- Tokens in the order they were made (token ids are UUIDv7). $1 after this token id, $2 how many.
-- Row: the token. Index: tokens_pkey.
SELECT t.token_id, t.name, t.role, t.grants, t.created_at, t.created_by, t.expires_at,
  t.revoked_at, t.revoked_by, t.last_used_at
FROM everstate.tokens t WHERE t.token_id > $1 ORDER BY t.token_id LIMIT $2
