-- Makes the next version; the table is locked (descriptors_lock).
-- $1 bytea: SHA-256 of the set as it came. $2 text[]: files that changed.
-- $3 text[]: incompatible changes that were allowed.
-- Row: the version. Index: descriptor_versions_pkey.
INSERT INTO everstate.descriptor_versions (version, digest, files, breaking)
SELECT coalesce(max(v.version), 0) + 1, $1, $2, $3 FROM everstate.descriptor_versions v
RETURNING version
