-- The number of the next build of a version. $1 name, $2 version. Index: projection_builds_pkey.
SELECT coalesce(max(d.build), 0) + 1 AS build FROM everstate.projection_builds d
WHERE d.name = $1 AND d.version = $2
