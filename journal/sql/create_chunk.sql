-- Makes the next chunk of a log. $1 log.
SELECT everstate.create_chunk_v1($1)
