-- A page of types by name. $1 text: after this name. $2 text: from this name on.
-- $3 text: below this name. $4 int: rows.
-- Rows: name, file, fields, version. Index: descriptor_types_pkey.
SELECT t.name, t.file, t.fields, f.version
FROM everstate.descriptor_types t JOIN everstate.descriptor_files f ON f.name = t.file
WHERE t.name > $1 AND t.name >= $2 AND t.name < $3
ORDER BY t.name
LIMIT $4
