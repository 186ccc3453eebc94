-- Entities made in a log up to a position. $1 log, $2 position. Index: primary key of batches, backwards.
SELECT b.last_entity_key FROM everstate.batches b WHERE b.log_id = $1 AND b.last_position <= $2
ORDER BY b.last_position DESC LIMIT 1
