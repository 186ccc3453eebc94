-- Makes a role that can log in nowhere and lets the connection become it. It may be there already:
-- roles are the cluster's, and a database of the same name may have been dropped without it.
CREATE FUNCTION everstate.create_confined_role_v1(p_role text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = p_role) THEN
    EXECUTE format('CREATE ROLE %I NOLOGIN', p_role);
  END IF;
  -- Since PostgreSQL 16, whoever makes a role may administer it, but not become it.
  IF current_setting('server_version_num')::int >= 160000 THEN
    IF NOT pg_catalog.pg_has_role(current_user, p_role, 'SET') THEN
      EXECUTE format('GRANT %I TO %I WITH SET TRUE, INHERIT FALSE', p_role, current_user);
    END IF;
  ELSIF NOT pg_catalog.pg_has_role(current_user, p_role, 'MEMBER') THEN
    EXECUTE format('GRANT %I TO %I', p_role, current_user);
  END IF;
END $$;
