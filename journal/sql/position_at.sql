-- The first position recorded at or after a time; no row: there is none. $1 log, $2 time.
-- Index: batches_recorded_at.
SELECT b.first_position FROM everstate.batches b
WHERE b.log_id = $1 AND b.recorded_at >= $2 AND b.last_position > 0
ORDER BY b.recorded_at, b.last_position LIMIT 1
