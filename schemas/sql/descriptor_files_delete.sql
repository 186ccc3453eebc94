-- Removes files that others replace. $1 text[]: names. Index: descriptor_files_pkey.
DELETE FROM everstate.descriptor_files f WHERE f.name = ANY ($1)
