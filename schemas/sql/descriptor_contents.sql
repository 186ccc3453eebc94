-- Files by name. $1 text[]: names. Rows: content, version. Index: descriptor_files_pkey.
SELECT f.content, f.version FROM everstate.descriptor_files f WHERE f.name = ANY ($1)
