-- Which entities have nothing to compact: their oldest readable event is beyond the bounds, or their
-- floor rests on their newest snapshot.
-- $1 log, $2 entity keys, $3 their floors, $4 what those rest on (0: nothing), $5 and $6 their first and
-- last position, $7 highest position, $8 event time before which an event is (null: no bound).
-- Row: entity key. Index: primary key of snapshots, unique (entity_key, seq) of the chunks.
SELECT w.key
FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
  w(key, floor, rests, first, last)
WHERE (w.rests > 0 AND (
    SELECT y.seq FROM everstate.snapshots y
    WHERE y.log_id = $1 AND y.entity_key = w.key AND y.seq > w.rests AND y.removed_at IS NULL
    LIMIT 1) IS NULL)
  OR (($7::bigint IS NOT NULL OR $8::timestamptz IS NOT NULL) AND (
    SELECT e.position > coalesce($7::bigint, 9223372036854775807)
      OR e.at >= coalesce($8::timestamptz, 'infinity')
    FROM (
      SELECT x.position, everstate.event_time_v1(x.metadata, x.recorded_at) AS at
      FROM everstate.events x
      WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq >= w.floor
        AND x.position BETWEEN w.first AND w.last
      ORDER BY x.seq LIMIT 1) e))
