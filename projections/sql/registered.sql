-- What is registered of a projection. $1 name. Rows, oldest version first: version, digest,
-- registered_at, live_version, log. Index: projection_versions_pkey.
SELECT v.version, v.digest, v.on_poison, v.registered_at, p.live_version, l.name AS log
FROM everstate.projection_versions v
JOIN everstate.projections p ON p.name = v.name
JOIN everstate.logs l ON l.log_id = v.log_id
WHERE v.name = $1 ORDER BY v.version
