-- Forgets the types of files. $1 text[]: names of files. Index: descriptor_types_file.
DELETE FROM everstate.descriptor_types t WHERE t.file = ANY ($1)
