-- Removes the schema of a build of a projection with all that is in it, and its role.
CREATE FUNCTION everstate.drop_read_model_v1(p_schema text, p_role text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', p_schema);
  EXECUTE format('DROP ROLE IF EXISTS %I', p_role);
END $$;
