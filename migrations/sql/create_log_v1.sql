-- Makes a log with its first chunk; returns its id, or null when there is one of that name.
-- The batch row of position 0 is where the first append finds the head.
CREATE FUNCTION everstate.create_log_v1(p_name text, p_chunk_size bigint) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
  l int;
BEGIN
  INSERT INTO everstate.logs (name, chunk_size) VALUES (p_name, p_chunk_size)
    ON CONFLICT (name) DO NOTHING RETURNING log_id INTO l;
  IF l IS NULL THEN
    RETURN NULL;
  END IF;
  PERFORM set_config('lock_timeout', '20ms', true);
  EXECUTE format('CREATE TABLE everstate.%I (LIKE everstate.events INCLUDING DEFAULTS INCLUDING STORAGE)
    PARTITION BY RANGE (position)', format('events_%s', l));
  EXECUTE format('ALTER TABLE everstate.events ATTACH PARTITION everstate.%I FOR VALUES IN (%s)',
    format('events_%s', l), l);
  INSERT INTO everstate.batches
      (log_id, last_position, first_position, recorded_at, last_entity_key, bytes_total, node)
    VALUES (l, 0, 1, clock_timestamp(), 0, 0, '');
  PERFORM everstate.create_chunk_v1(l);
  RETURN l;
END $$;
