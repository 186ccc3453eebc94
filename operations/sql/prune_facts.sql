-- Which snapshots of entities pruning would remove: all but the newest $4 and the newest $4 usable
-- ones, and never one that a floor rests on. $1 log; by entity, an array each: $2 key, $3 type,
-- $4 how many stay, $5 only below this sequence number.
-- Row, for each that has any: entity_key, sequences (ascending), bytes. Index: primary key of
-- snapshots, entity_marks_pkey.
SELECT w.key AS entity_key, o.sequences, o.bytes
FROM unnest($2::bigint[], $3::int[], $4::int[], $5::bigint[]) w(key, type_id, keep, below)
JOIN everstate.entity_types t ON t.type_id = w.type_id
CROSS JOIN LATERAL (
  SELECT array_agg(r.seq ORDER BY r.seq) AS sequences, sum(r.size) AS bytes
  FROM (
    SELECT x.seq, octet_length(x.payload) AS size, everstate.snapshot_is_usable_v1(t.settings, x.type)
        AS usable, row_number() OVER (ORDER BY x.seq DESC) AS n,
      count(*) FILTER (WHERE everstate.snapshot_is_usable_v1(t.settings, x.type))
        OVER (ORDER BY x.seq DESC) AS usable_n
    FROM everstate.snapshots x
    WHERE x.log_id = $1 AND x.entity_key = w.key AND x.removed_at IS NULL
  ) r
  LEFT JOIN everstate.entity_marks m ON m.log_id = $1 AND m.entity_key = w.key
  WHERE r.n > w.keep AND (NOT r.usable OR r.usable_n > w.keep) AND r.seq < w.below
    AND m.snapshot_seq IS DISTINCT FROM r.seq
) o
WHERE o.sequences IS NOT NULL
