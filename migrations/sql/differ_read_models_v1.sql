-- Rows (of p_columns) that a table of p_old has and p_new has not, and the other way round; p_limit of
-- each at most. A row that is there twice in one and once in the other counts.
CREATE FUNCTION everstate.differ_read_models_v1(
  p_old text, p_new text, p_table text, p_columns text[], p_limit int
) RETURNS TABLE (side text, content jsonb)
LANGUAGE plpgsql STABLE AS $$
DECLARE
  columns text := (
    SELECT string_agg(format('%I', c), ', ' ORDER BY n)
    FROM unnest(p_columns) WITH ORDINALITY AS u (c, n)
  );
BEGIN
  FOR side, p_old, p_new IN VALUES ('old', p_old, p_new), ('new', p_new, p_old) LOOP
    RETURN QUERY EXECUTE format(
      'SELECT %L::text, d.content::jsonb FROM ('
      'SELECT to_jsonb(a)::text AS content FROM (SELECT %s FROM %I.%I) a EXCEPT ALL '
      'SELECT to_jsonb(b)::text FROM (SELECT %s FROM %I.%I) b LIMIT %s) d',
      side, columns, p_old, p_table, columns, p_new, p_table, p_limit);
  END LOOP;
END $$;
