-- Makes a log; null when there is one of that name. $1 name, $2 positions a chunk.
SELECT everstate.create_log_v1($1, $2)
