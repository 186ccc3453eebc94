-- Forgets old figures, a thousand at once. $1 how old.
-- Row: how many went. Index: vitals_at.
WITH gone AS (
  DELETE FROM everstate.vitals v
  WHERE v.ctid = ANY (ARRAY(
    SELECT o.ctid FROM everstate.vitals o WHERE o.at < clock_timestamp() - $1::interval
    ORDER BY o.at LIMIT 1000 FOR UPDATE SKIP LOCKED))
  RETURNING 1)
SELECT count(*) AS gone FROM gone
