-- Makes the days of append_results from p_from to p_to and drops those before p_keep_from.
-- Returns how many partitions it made and dropped. ATTACH, so that it stalls no append.
CREATE FUNCTION everstate.prepare_append_results_v1(p_from date, p_to date, p_keep_from date)
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  d date;
  leaf text;
  changed int := 0;
BEGIN
  PERFORM set_config('lock_timeout', '20ms', true);
  PERFORM pg_advisory_xact_lock(hashtext('everstate.append_results'), 0);
  FOR d IN SELECT generate_series(p_from, p_to, interval '1 day')::date LOOP
    leaf := 'append_results_' || to_char(d, 'YYYYMMDD');
    IF to_regclass(format('everstate.%I', leaf)) IS NULL THEN
      EXECUTE format(
        'CREATE TABLE everstate.%1$I (LIKE everstate.append_results INCLUDING ALL,
           CONSTRAINT day CHECK (day IS NOT NULL AND day >= %2$L AND day < %3$L))',
        leaf, d, d + 1);
      EXECUTE format(
        'ALTER TABLE everstate.append_results ATTACH PARTITION everstate.%I FOR VALUES FROM (%L) TO (%L)',
        leaf, d, d + 1);
      changed := changed + 1;
    END IF;
  END LOOP;
  FOR leaf IN
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'everstate.append_results'::regclass
      AND c.relname < 'append_results_' || to_char(p_keep_from, 'YYYYMMDD')
  LOOP
    EXECUTE format('DROP TABLE everstate.%I', leaf);
    changed := changed + 1;
  END LOOP;
  RETURN changed;
END $$;
