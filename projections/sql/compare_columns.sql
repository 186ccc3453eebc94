-- Columns of the tables of two builds of a read model. $1 schema of the old, $2 schema of the new.
-- Row: table, column, type, whether it is the old one's; in the order of the columns.
-- Index: pg_class_relname_nsp_index, pg_attribute_relid_attnum_index.
SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), n.nspname = $1
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname IN ($1, $2)
ORDER BY c.relname, a.attnum, n.nspname = $1 DESC
