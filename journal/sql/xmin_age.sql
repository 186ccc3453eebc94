-- Seconds since the oldest transaction that still holds back vacuum in this database began; 0: none.
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.backend_start))), 0)::float8
FROM pg_stat_activity a
WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid() AND a.datname = current_database()
