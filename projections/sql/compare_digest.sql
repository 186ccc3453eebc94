-- How many rows a table of a read model has, and their checksum. $1 schema, $2 table, $3 columns.
-- Row: row_count, checksum. Reads the whole table.
SELECT d.row_count, d.checksum FROM everstate.digest_read_model_v1($1, $2, $3) d
