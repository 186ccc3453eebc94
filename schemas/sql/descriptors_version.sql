-- The registry's version, 0 before the first. No parameters. Index: descriptor_versions_pkey.
SELECT coalesce((SELECT v.version FROM everstate.descriptor_versions v
                 ORDER BY v.version DESC LIMIT 1), 0)
