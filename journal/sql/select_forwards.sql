-- Events of a log in a range of positions that match a filter, forwards.
-- $1 log, $2 first, $3 last position, $4 rows at most, $5 payload bytes after which to stop (the
-- event that crosses it is the last), $6 entity type ids, $7 event type ids, $8 and $9 first and last
-- slices of ranges (null arrays: no filter). Row: the columns of `journal.rows.EventRow`.
-- Index: primary key (position) of the chunk; the caller keeps the range short.
SELECT position, seq, recorded_at, prev_position, event_id, type_id, entity_type_id, slice, entity_id,
  payload, metadata
FROM (
  SELECT e.*, sum(octet_length(e.payload)) OVER (ORDER BY e.position ROWS UNBOUNDED PRECEDING)
    - octet_length(e.payload) AS before
  FROM (
    SELECT x.* FROM everstate.events x
    WHERE x.log_id = $1 AND x.position BETWEEN $2 AND $3
      AND ($6::int[] IS NULL OR x.entity_type_id = ANY ($6::int[]))
      AND ($7::int[] IS NULL OR x.type_id = ANY ($7::int[]))
      AND ($8::int[] IS NULL OR EXISTS (
        SELECT FROM unnest($8::int[], $9::int[]) s(lo, hi) WHERE x.slice BETWEEN s.lo AND s.hi))
    ORDER BY x.position LIMIT $4
  ) e
) w
WHERE before < $5
ORDER BY position
