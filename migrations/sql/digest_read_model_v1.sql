-- The number of rows of a table and a checksum over p_columns, whatever the order of the rows.
CREATE FUNCTION everstate.digest_read_model_v1(
  p_schema text, p_table text, p_columns text[], OUT row_count bigint, OUT checksum numeric
)
LANGUAGE plpgsql STABLE AS $$
BEGIN
  EXECUTE format(
    'SELECT count(*), coalesce(sum(hashtextextended(ROW(%s)::text, 0)), 0) FROM %I.%I',
    (SELECT string_agg(format('%I', c), ', ' ORDER BY n) FROM unnest(p_columns) WITH ORDINALITY AS u (c, n)),
    p_schema, p_table
  ) INTO row_count, checksum;
END $$;
