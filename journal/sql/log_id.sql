-- Id of a log. $1 name. Index: unique (name).
SELECT l.log_id FROM everstate.logs l WHERE l.name = $1
