-- Removes the tables of a build; drop_read_model_v1.sql explains it. $1 schema, $2 role.
SELECT everstate.drop_read_model_v1($1, $2)
