-- Makes the next chunk of a log and attaches it; returns its number.
--
-- One caller at a time (advisory lock). ATTACH with the CHECK over both partition levels needs no
-- scan and locks out no append (docs/explanation/storage.md); it gives up after 20 ms behind a lock
-- (55P03), and the caller tries again.
CREATE FUNCTION everstate.create_chunk_v1(p_log int) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
  size bigint;
  n int;
  a bigint;
  leaf text;
BEGIN
  PERFORM set_config('lock_timeout', '20ms', true);
  PERFORM pg_advisory_xact_lock(hashtext('everstate.create_chunk'), p_log);
  SELECT l.chunk_size INTO STRICT size FROM everstate.logs l WHERE l.log_id = p_log;
  SELECT coalesce(max(c.chunk_no) + 1, 0), coalesce(max(c.last) + 1, 1) INTO n, a
    FROM everstate.chunks c WHERE c.log_id = p_log;
  leaf := format('events_%s_%s', p_log, n);
  EXECUTE format(
    'CREATE TABLE everstate.%1$I (LIKE everstate.events INCLUDING DEFAULTS INCLUDING STORAGE,
       PRIMARY KEY (position), UNIQUE (entity_key, seq),
       CONSTRAINT chunk CHECK (log_id IS NOT NULL AND log_id = %2$s
         AND position IS NOT NULL AND position >= %3$s AND position < %4$s))',
    leaf, p_log, a, a + size);
  EXECUTE format(
    'ALTER TABLE everstate.%I ATTACH PARTITION everstate.%I FOR VALUES FROM (%s) TO (%s)',
    format('events_%s', p_log), leaf, a, a + size);
  INSERT INTO everstate.chunks (log_id, chunk_no, first, last, table_name)
    VALUES (p_log, n, a, a + size - 1, leaf);
  RETURN n;
END $$;
