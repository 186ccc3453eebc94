-- Makes the views in p_views show the tables (and views) of p_schema, and takes away those that have
-- no table any more. A view that can be replaced keeps its grants and what hangs on it; one whose
-- columns changed is made anew with the same grants, which fails when something hangs on it.
-- p_role owns the tables; the views belong to the connection's role, which gets the right to read.
CREATE FUNCTION everstate.publish_read_model_v1(
  p_schema text, p_role text, p_views text, p_reader text
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  t record;
  g record;
  grants text[];
  definition text;
  owner text := current_user;
  former text := current_setting('role');
BEGIN
  PERFORM set_config('role', p_role, true);
  EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %I', p_schema, owner);
  PERFORM set_config('role', former, true);
  FOR t IN
    SELECT c.relname FROM pg_catalog.pg_class c
    WHERE c.relnamespace = p_views::regnamespace AND c.relkind = 'v' AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_class o WHERE o.relnamespace = p_schema::regnamespace
        AND o.relname = c.relname AND o.relkind IN ('r', 'p', 'v', 'm'))
  LOOP
    EXECUTE format('DROP VIEW %I.%I', p_views, t.relname);
  END LOOP;
  FOR t IN
    SELECT c.relname FROM pg_catalog.pg_class c
    WHERE c.relnamespace = p_schema::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
      AND NOT c.relispartition
    ORDER BY c.relname
  LOOP
    definition := format('VIEW %I.%I AS SELECT * FROM %I.%I', p_views, t.relname, p_schema, t.relname);
    BEGIN
      EXECUTE 'CREATE OR REPLACE ' || definition;
    EXCEPTION WHEN invalid_table_definition OR wrong_object_type THEN
      SELECT array_agg(format('GRANT %s ON %I.%I TO %s', a.privilege_type, p_views, t.relname,
          CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END))
        INTO grants
        FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
        WHERE c.oid = to_regclass(format('%I.%I', p_views, t.relname));
      EXECUTE format('DROP VIEW %I.%I', p_views, t.relname);
      EXECUTE 'CREATE ' || definition;
      FOR g IN SELECT unnest(grants) AS statement LOOP
        EXECUTE g.statement;
      END LOOP;
    END;
    EXECUTE format('GRANT SELECT ON %I.%I TO %I', p_views, t.relname, p_reader);
  END LOOP;
END $$;
