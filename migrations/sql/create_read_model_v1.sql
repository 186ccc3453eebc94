-- Makes the empty schema of a build of a projection and the role that may write in it and nowhere
-- else, and the schema of the views with the role of their readers. The tables are then made by the
-- role p_role.
CREATE FUNCTION everstate.create_read_model_v1(
  p_schema text, p_role text, p_views text, p_reader text
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM everstate.create_confined_role_v1(p_role);
  PERFORM everstate.create_confined_role_v1(p_reader);
  EXECUTE format('CREATE SCHEMA %I', p_schema);
  EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO %I', p_schema, p_role);
  EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I', p_views);
  EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', p_views, p_reader);
END $$;
