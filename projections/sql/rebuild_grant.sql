-- Lets this connection's role read the tables of a build. $1 schema, $2 role.
SELECT everstate.grant_read_model_v1($1, $2)
