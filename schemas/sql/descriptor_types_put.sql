-- Writes types. $1 text[]: names. $2 text[]: file of each. $3 int[]: fields of each.
-- Index: descriptor_types_pkey.
INSERT INTO everstate.descriptor_types (name, file, fields)
SELECT * FROM unnest($1::text[], $2::text[], $3::int[])
