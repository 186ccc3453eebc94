-- Makes the views show a build; publish_read_model_v1.sql explains it. $1 schema, $2 role, $3 schema
-- of the views, $4 role of the readers.
SELECT everstate.publish_read_model_v1($1, $2, $3, $4)
