-- Events of several entities, in the order of the arguments, each entity's in order.
-- $1 log; by entity, an array each: $2 key, $3 after this sequence number, $4 up to this one, $5 and $6
-- first and last position (they choose the chunks); $7 rows of an entity at most, $8 bytes of payload
-- and metadata after which to stop (the event that crosses it is the last).
-- Row: the columns of `journal.rows.EventRow`. Index: unique (entity_key, seq) of the chunk.
SELECT position, seq, recorded_at, prev_position, event_id, type_id, entity_type_id, slice, entity_id,
  payload, metadata
FROM (
  SELECT n, e.*, sum(size) OVER (ORDER BY n, e.seq ROWS UNBOUNDED PRECEDING) - size AS before
  FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) WITH ORDINALITY
    w(key, after, upto, low, high, n)
  CROSS JOIN LATERAL (
    SELECT x.position, x.seq, x.recorded_at, x.prev_position, x.event_id, x.type_id,
      x.entity_type_id, x.slice, x.entity_id, x.payload, x.metadata,
      octet_length(x.payload) + coalesce(octet_length(x.metadata::text), 0) AS size
    FROM everstate.events x
    WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq > w.after AND x.seq <= w.upto
      AND x.position BETWEEN w.low AND w.high
    ORDER BY x.seq LIMIT $7) e
) v
WHERE before < $8
ORDER BY n, seq
