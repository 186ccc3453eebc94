-- The files that define some types, and all that these import, without their contents.
-- $1 text[]: full names of messages; null: all files. Rows: name, bytes.
-- Index: descriptor_types_pkey, descriptor_files_pkey.
WITH RECURSIVE needed (name) AS (
  SELECT t.file FROM everstate.descriptor_types t WHERE t.name = ANY ($1)
  UNION
  SELECT unnest(f.imports) FROM needed n JOIN everstate.descriptor_files f ON f.name = n.name
)
SELECT f.name, octet_length(f.content)
FROM everstate.descriptor_files f
WHERE $1 IS NULL OR f.name IN (SELECT n.name FROM needed n)
ORDER BY f.name
