-- What there is to do with builds. $1 how long a previous build is kept.
-- Row: name, version, build, state, what: make (ordered), switch (ready, by itself), retire (previous
-- for too long, or another one became previous after it), drop (retired, its schema is there).
-- Reads all builds: one row a build that ever was.
SELECT d.name, d.version, d.build, d.state,
  CASE d.state WHEN 'ordered' THEN 'make' WHEN 'ready' THEN 'switch' WHEN 'previous' THEN 'retire'
    ELSE 'drop' END AS what
FROM everstate.projection_builds d
WHERE d.state = 'ordered'
  OR (d.state = 'ready' AND d.auto_switch)
  OR (d.state = 'retired' AND d.dropped_at IS NULL)
  OR (d.state = 'previous' AND (
    d.previous_at <= clock_timestamp() - $1::interval
    OR EXISTS (
      SELECT FROM everstate.projection_builds o
      WHERE o.name = d.name AND o.state = 'previous' AND o.previous_at > d.previous_at)))
ORDER BY d.name, d.version, d.build
