-- Ends what enter.sql began: as the connection's own role again, with nothing on the search path.
SELECT set_config('role', 'none', true), set_config('search_path', '', true),
  set_config('enable_seqscan', 'off', true)
