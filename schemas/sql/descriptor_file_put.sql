-- Writes a file. $1 text: name. $2 bigint: version. $3 text[]: imports. $4 bytea: content.
-- Index: descriptor_files_pkey.
INSERT INTO everstate.descriptor_files AS f (name, version, imports, content)
VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET version = excluded.version, imports = excluded.imports, content = excluded.content
