-- What making a read model needs. $1 a name that the lock of registrations is made of: one registers
-- at a time. Row: database, user_name, may_create_roles, may_create_schemas.
SELECT current_database()::text AS database, current_user::text AS user_name,
  (SELECT r.rolsuper OR r.rolcreaterole FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
    AS may_create_roles,
  has_database_privilege(current_database(), 'CREATE') AS may_create_schemas,
  pg_advisory_xact_lock(hashtextextended($1, 0)) IS NULL AS locked
