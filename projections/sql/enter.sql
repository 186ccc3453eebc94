-- Confines the transaction: from here on statements run as a build's role, in its schema. $1 role,
-- $2 search path, $3 synchronous_commit, $4 idle_in_transaction_session_timeout in milliseconds
-- ('' of these two: as it is). The settings end with the transaction.
-- Sequential scans are on again: what the pool's setting guards against is not the user's matter.
SELECT set_config('search_path', $2, true),
  set_config('synchronous_commit', coalesce(nullif($3::text, ''), current_setting('synchronous_commit')), true),
  set_config('idle_in_transaction_session_timeout', coalesce(nullif($4::text, ''), current_setting('idle_in_transaction_session_timeout')), true),
  set_config('enable_seqscan', 'on', true), set_config('role', $1, true)
