-- Entities of one type by id, with whether they match: the next heads, all of them, so that none is
-- looked at twice and no call takes long, however few match.
-- $1 log, $19 entity type, $20 ids from this one, $21 after this one, $22 below this one, $23 heads.
-- $2, $3 first and last position of a range that it has an event in (null: any); $4, $5 least and most
-- events; $6, $7 the same of its sequence number; $8 state, $9 held, $10 snapshot: none, any, due
-- (null: any); for due: $11 entity types, $12 events and $13 seconds after which one is, $14 now;
-- $15, $16 event time of its last event, in microseconds, inclusive; $17, $18 bytes of its payloads
-- (null: no bound). Events are read only for what is asked for.
-- Row: `operations.kinds.base.Candidate`, then matches.
-- Index: primary key of entities, entity_marks, snapshots; unique (entity_key, seq) of the chunks.
SELECT e.entity_key, (SELECT t.name FROM everstate.entity_types t WHERE t.type_id = $19) AS entity_type,
  e.type_id AS entity_type_id, e.entity_id, e.slice, e.state, e.last_seq AS sequence, e.event_count,
  e.first_position, e.last_position,
  coalesce(m.floor, e.last_seq - e.event_count + 1) AS floor,
  coalesce(m.floor_position, 0) AS floor_position, coalesce(m.snapshot_seq, 0) AS floor_snapshot,
  coalesce(m.held, false) AS held, coalesce(s.seq, 0) AS snapshot,
  -- conditions: the same in candidates_scan.sql and candidates_listed.sql (a test holds it)
  (
    ($2::bigint IS NULL
      OR e.first_position BETWEEN $2::bigint AND $3::bigint
      OR e.last_position BETWEEN $2::bigint AND $3::bigint
      OR (e.first_position < $2::bigint AND e.last_position > $3::bigint AND (
        SELECT true FROM everstate.events x
        WHERE x.log_id = $1 AND x.entity_key = e.entity_key
          AND x.position BETWEEN $2::bigint AND $3::bigint
        ORDER BY x.seq LIMIT 1) IS NOT NULL))
    AND e.event_count BETWEEN $4::bigint AND $5::bigint
    AND e.last_seq BETWEEN $6::bigint AND $7::bigint
    AND ($8::smallint IS NULL OR e.state = $8::smallint)
    AND ($9::bool IS NULL OR coalesce(m.held, false) = $9::bool)
    AND ($10::text IS NULL
      OR ($10::text = 'none' AND s.seq IS NULL)
      OR ($10::text = 'any' AND s.seq IS NOT NULL)
      OR ($10::text = 'due' AND (
        SELECT true FROM unnest($11::int[], $12::bigint[], $13::bigint[]) d(type_id, every, age_s)
        WHERE d.type_id = e.type_id AND e.last_seq > coalesce(s.seq, 0) AND (
          (d.every > 0 AND e.last_seq - coalesce(s.seq, e.last_seq - e.event_count) >= d.every)
          OR (d.age_s > 0 AND (
            SELECT x.recorded_at FROM everstate.events x
            WHERE x.log_id = $1 AND x.entity_key = e.entity_key AND x.seq > coalesce(s.seq, 0)
              AND x.position BETWEEN e.first_position AND e.last_position
            ORDER BY x.seq LIMIT 1) < $14::timestamptz - d.age_s * interval '1 second'))
        LIMIT 1) IS NOT NULL))
    AND (($15::bigint IS NULL AND $16::bigint IS NULL) OR (
      SELECT coalesce((x.metadata->>'$time')::bigint,
        (extract(epoch FROM x.recorded_at) * 1000000)::bigint)
      FROM everstate.events x
      WHERE x.log_id = $1 AND x.position BETWEEN e.last_position AND e.last_position
      ORDER BY x.position LIMIT 1)
      BETWEEN coalesce($15::bigint, -9223372036854775808) AND coalesce($16::bigint, 9223372036854775807))
    AND (($17::bigint IS NULL AND $18::bigint IS NULL) OR (
      SELECT sum(octet_length(o.payload)) FROM (
        SELECT x.payload FROM everstate.events x
        WHERE x.log_id = $1 AND x.entity_key = e.entity_key
          AND x.position BETWEEN e.first_position AND e.last_position
        ORDER BY x.seq OFFSET 0) o)
      BETWEEN coalesce($17::bigint, 0) AND coalesce($18::bigint, 9223372036854775807))
  ) AS matches
FROM (
  SELECT * FROM everstate.entities h
  WHERE h.log_id = $1 AND h.type_id = $19 AND h.entity_id >= $20 AND h.entity_id > $21 AND h.entity_id < $22
  ORDER BY h.entity_id LIMIT $23) e
LEFT JOIN LATERAL (
  SELECT x.floor, x.floor_position, x.snapshot_seq, x.held FROM everstate.entity_marks x
  WHERE x.log_id = $1 AND x.entity_key = e.entity_key LIMIT 1) m ON true
LEFT JOIN LATERAL (
  SELECT x.seq FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = e.entity_key AND x.removed_at IS NULL
  ORDER BY x.seq DESC LIMIT 1) s ON true
ORDER BY e.entity_id
