-- Notes that a token was used, at most every five minutes. $1 token id. Index: tokens_pkey.
UPDATE everstate.tokens t SET last_used_at = clock_timestamp()
WHERE t.token_id = $1
  AND coalesce(t.last_used_at < clock_timestamp() - interval '5 minutes', true)
