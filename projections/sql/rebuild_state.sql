-- Changes the state of a build and notes when. $1 name, $2 version, $3 build, $4 state.
-- Row: build. Index: projection_builds_pkey.
UPDATE everstate.projection_builds
SET state = $4, auto_switch = auto_switch AND $4 IN ('building', 'ready'),
  live_at = CASE WHEN $4 = 'live' THEN clock_timestamp() ELSE live_at END,
  previous_at = CASE WHEN $4 = 'previous' THEN clock_timestamp() ELSE previous_at END,
  retired_at = CASE WHEN $4 = 'retired' THEN clock_timestamp() ELSE retired_at END
WHERE name = $1 AND version = $2 AND build = $3
RETURNING build
