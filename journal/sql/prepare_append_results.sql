-- Makes and drops days of append_results. $1 from, $2 to, $3 keep from (dates).
SELECT everstate.prepare_append_results_v1($1, $2, $3)
