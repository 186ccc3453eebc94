-- Events of a log in a range of positions, ascending.
-- $1 log, $2 first, $3 last position, $4 rows at most, $5 payload bytes after which to stop (the
-- event that crosses it is the last). Row: the columns of `journal.rows.EventRow`.
-- Index: primary key (position) of the chunk.
SELECT position, seq, recorded_at, prev_position, event_id, type_id, entity_type_id, slice, entity_id,
  payload, metadata
FROM (
  SELECT e.*, sum(octet_length(e.payload)) OVER (ORDER BY e.position ROWS UNBOUNDED PRECEDING)
    - octet_length(e.payload) AS before
  FROM (
    SELECT x.* FROM everstate.events x
    WHERE x.log_id = $1 AND x.position BETWEEN $2 AND $3
    ORDER BY x.position LIMIT $4
  ) e
) w
WHERE before < $5
ORDER BY position
