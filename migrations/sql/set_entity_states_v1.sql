-- Sets the state of entities (0 active, 1 deleted, 2 tombstoned): the only writer of entities beside
-- the append function, whose verdict reads it. It locks the log's row first, as appends do, so that
-- no append is judged while a state changes, and it takes at most 500 entities, so that none waits
-- long.
--
-- p_from are the states that may be left; an entity in another one stays as it is. Returns the keys
-- that were changed, with their states before.
CREATE FUNCTION everstate.set_entity_states_v1(
  p_log int, p_types int[], p_ids text[], p_from smallint[], p_to smallint[])
RETURNS TABLE (entity_key bigint, state_before smallint)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
  IF cardinality(p_ids) > 500 THEN
    RAISE EXCEPTION 'more than 500 entities at once' USING ERRCODE = 'EV003';
  END IF;
  PERFORM FROM everstate.logs l WHERE l.log_id = p_log FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no log %', p_log USING ERRCODE = 'EV004';
  END IF;
  RETURN QUERY
    WITH wanted AS (
      SELECT w.type, w.id, w.s_to, h.state
      FROM unnest(p_types, p_ids, p_to) w(type, id, s_to)
      CROSS JOIN LATERAL (
        SELECT x.state FROM everstate.entities x
        WHERE x.log_id = p_log AND x.type_id = w.type AND x.entity_id = w.id LIMIT 1) h
      WHERE h.state = ANY (p_from) AND h.state <> w.s_to)
    UPDATE everstate.entities e SET state = w.s_to
    FROM wanted w
    WHERE e.log_id = p_log AND e.type_id = w.type AND e.entity_id = w.id
    RETURNING e.entity_key, w.state;
END $$;
