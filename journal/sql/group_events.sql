-- Events at given positions, ascending. $1 log, $2 positions (ascending), $3 and $4 the first and
-- last of them, $5 payload bytes after which to stop (the event that crosses it is the last).
-- Row: the columns of `journal.rows.EventRow`. Index: primary key (position) of the chunks.
SELECT position, seq, recorded_at, prev_position, event_id, type_id, entity_type_id, slice, entity_id,
  payload, metadata
FROM (
  SELECT e.*, sum(octet_length(e.payload)) OVER (ORDER BY e.position ROWS UNBOUNDED PRECEDING)
    - octet_length(e.payload) AS before
  FROM unnest($2::bigint[]) w(position)
  CROSS JOIN LATERAL (
    SELECT x.* FROM everstate.events x
    WHERE x.log_id = $1 AND x.position BETWEEN $3 AND $4 AND x.position = w.position
    LIMIT 1) e
) y
WHERE before < $5
ORDER BY position
