-- Payload bytes of a log's average event; 0: it has none. $1 log. Index: batches_pkey.
SELECT coalesce(b.bytes_total::float8 / nullif(b.last_position, 0), 0) AS bytes
FROM everstate.batches b WHERE b.log_id = $1 ORDER BY b.last_position DESC LIMIT 1
