-- Locks a projection: batches of its builds that are being committed come first, later ones wait.
-- $1 name. Row: live_version, live_build, paused, pause_reason, database; no row: there is no such
-- projection. Index: projections_pkey.
SELECT p.live_version, p.live_build, p.paused, p.pause_reason, current_database()::text AS database
FROM everstate.projections p WHERE p.name = $1 FOR NO KEY UPDATE
