-- A new projection: its first version is live at once. $1 name, $2 version. Index: projections_pkey.
INSERT INTO everstate.projections (name, live_version, live_build) VALUES ($1, $2, 1)
