-- The time of the database. Row: now. Parameters: none. Index: none.
SELECT clock_timestamp() AS now
