-- Makes the views of a projection show a build. $1 schema of the build, $2 its role, $3 schema of the
-- views, $4 role of the readers. Replaces every view: takes the strongest lock on each.
SELECT everstate.publish_read_model_v1($1, $2, $3, $4)
