-- Removes the tables and the role of a build that is retired, unless another worker did. $1 schema,
-- $2 role. Takes the strongest lock on each table.
SELECT everstate.drop_read_model_v1($1, $2)
