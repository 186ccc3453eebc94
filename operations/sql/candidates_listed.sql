-- Entities of a list, in its order, with whether they match; one that is not there is left out.
-- $1 log, $17 entity types and $18 ids.
-- $2, $3 first and last position of a range that it has an event in (null: any); $4, $5 least and most
-- events; $6, $7 the same of its sequence number; $8 state, $9 held, $10 snapshot: none, any, due
-- (null: any), $11 now; event time of its last event $12 or later and before $13; $14, $15 least and
-- most bytes of its payloads (null: no bound); $16 whether snapshots are looked at. Events are read only for what is asked for.
-- Row: `operations.kinds.base.Candidate`, then matches.
-- Index: primary key of entities, entity_marks, snapshots; unique (entity_key, seq) of the chunks.
SELECT e.entity_key, t.name AS entity_type, e.type_id AS entity_type_id, e.entity_id, e.slice, e.state,
  e.last_seq AS sequence, e.event_count, e.first_position, e.last_position,
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
        SELECT true FROM everstate.entity_types t
        CROSS JOIN LATERAL (
          SELECT coalesce((
            SELECT x.seq FROM everstate.snapshots x
            WHERE x.log_id = $1 AND x.entity_key = e.entity_key AND x.removed_at IS NULL
              AND everstate.snapshot_is_usable_v1(t.settings, x.type)
            ORDER BY x.seq DESC LIMIT 1), e.last_seq - e.event_count) AS seq) c
        WHERE t.type_id = e.type_id AND e.last_seq > c.seq
          AND NOT coalesce((t.settings->>'needs_full_replay')::bool, false)
          AND (
            e.last_seq - c.seq >= nullif((t.settings->>'snapshot_every')::bigint, 0)
            OR ((t.settings->>'snapshot_age_s')::bigint > 0 AND (
              SELECT everstate.event_time_v1(x.metadata, x.recorded_at) FROM everstate.events x
              WHERE x.log_id = $1 AND x.entity_key = e.entity_key AND x.seq > c.seq
                AND x.position BETWEEN e.first_position AND e.last_position
              ORDER BY x.seq LIMIT 1)
              < $11::timestamptz - (t.settings->>'snapshot_age_s')::bigint * interval '1 second'))
        LIMIT 1) IS NOT NULL))
    AND (($12::timestamptz IS NULL AND $13::timestamptz IS NULL) OR (
      SELECT event.at >= coalesce($12::timestamptz, '-infinity')
        AND event.at < coalesce($13::timestamptz, 'infinity')
      FROM (
        SELECT everstate.event_time_v1(x.metadata, x.recorded_at) AS at FROM everstate.events x
        WHERE x.log_id = $1 AND x.position BETWEEN e.last_position AND e.last_position
        ORDER BY x.position LIMIT 1) event))
    AND (($14::bigint IS NULL AND $15::bigint IS NULL) OR (
      SELECT sum(octet_length(o.payload)) FROM (
        SELECT x.payload FROM everstate.events x
        WHERE x.log_id = $1 AND x.entity_key = e.entity_key
          AND x.position BETWEEN e.first_position AND e.last_position
        ORDER BY x.seq OFFSET 0) o)
      BETWEEN coalesce($14::bigint, 0) AND coalesce($15::bigint, 9223372036854775807))
  ) AS matches
FROM unnest($17::int[], $18::text[]) WITH ORDINALITY w(type_id, entity_id, no)
CROSS JOIN LATERAL (
  SELECT * FROM everstate.entities h
  WHERE h.log_id = $1 AND h.type_id = w.type_id AND h.entity_id = w.entity_id LIMIT 1) e
CROSS JOIN LATERAL (
  SELECT y.name FROM everstate.entity_types y WHERE y.type_id = e.type_id LIMIT 1) t
LEFT JOIN LATERAL (
  SELECT x.floor, x.floor_position, x.snapshot_seq, x.held FROM everstate.entity_marks x
  WHERE x.log_id = $1 AND x.entity_key = e.entity_key LIMIT 1) m ON true
LEFT JOIN LATERAL (
  SELECT x.seq FROM everstate.snapshots x
  WHERE $16::bool AND x.log_id = $1 AND x.entity_key = e.entity_key AND x.removed_at IS NULL
  ORDER BY x.seq DESC LIMIT 1) s ON true
ORDER BY w.no
