-- Rows that only one of two builds of a table has. $1 schema of the old, $2 schema of the new, $3 table,
-- $4 columns, $5 rows of each side at most. Row: side (old, new), content. Reads both tables.
SELECT d.side, d.content FROM everstate.differ_read_models_v1($1, $2, $3, $4, $5) d
