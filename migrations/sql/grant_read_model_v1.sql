-- Lets the connection's role read the tables of a version, which belong to the version's role p_role.
CREATE FUNCTION everstate.grant_read_model_v1(p_schema text, p_role text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  owner text := current_user;
  former text := current_setting('role');
BEGIN
  PERFORM set_config('role', p_role, true);
  EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %I', p_schema, owner);
  PERFORM set_config('role', former, true);
END $$;
