-- Events of one entity, in order.
-- $1 log, $2 entity key, $3 after this sequence number, $4 up to this one, $5 and $6 the entity's first
-- and last position (they choose the chunks), $7 rows at most, $8 payload bytes after which to stop.
-- Row: the columns of `journal.rows.EventRow`. Index: unique (entity_key, seq) of the chunk.
SELECT position, seq, recorded_at, prev_position, event_id, type_id, entity_type_id, slice, entity_id,
  payload, metadata
FROM (
  SELECT e.*, sum(octet_length(e.payload)) OVER (ORDER BY e.seq ROWS UNBOUNDED PRECEDING)
    - octet_length(e.payload) AS before
  FROM (
    SELECT x.* FROM everstate.events x
    WHERE x.log_id = $1 AND x.entity_key = $2 AND x.seq > $3 AND x.seq <= $4
      AND x.position BETWEEN $5 AND $6
    ORDER BY x.seq LIMIT $7
  ) e
) w
WHERE before < $8
ORDER BY seq
