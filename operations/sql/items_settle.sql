-- Keeps what became of items. $1 operation, $2 numbers, $3 states, $4 reasons, $5 what undo needs (null:
-- as it was). Row: how many there are. Index: operation_items_pkey.
WITH w AS (
  SELECT * FROM unnest($2::bigint[], $3::smallint[], $4::text[], $5::jsonb[]) x(no, state, reason, before)
), u AS (
  UPDATE everstate.operation_items i
  SET state = w.state, reason = w.reason, before = coalesce(w.before, i.before)
  FROM w WHERE i.operation_id = $1 AND i.no = w.no
  RETURNING i.no
)
SELECT count(*) FROM u
