-- Looks at the next snapshots that were removed long ago, and deletes those that no operation can bring
-- back, whatever its state, and that no hold is on.
-- $1 so long ago at least, by the clock of the database; after this one: $2 when it was removed (null:
-- from the first on), $3 its log, $4 entity, $5 sequence number; $6 looks at so many at most.
-- Row: the last one that it looked at: removed_at, log_id, entity_key, seq, looked (at how many), gone
-- (how many were deleted); no row: there are no more. Index: snapshots_removed, operations_pkey,
-- entity_marks_pkey, primary key of snapshots.
WITH old AS MATERIALIZED (
  SELECT x.removed_at, x.log_id, x.entity_key, x.seq, x.removed_by FROM everstate.snapshots x
  WHERE x.removed_at < clock_timestamp() - $1::interval
    AND (x.removed_at, x.log_id, x.entity_key, x.seq)
      > (coalesce($2::timestamptz, '-infinity'), $3::int, $4::bigint, $5::bigint)
  ORDER BY x.removed_at, x.log_id, x.entity_key, x.seq LIMIT $6
), gone AS (
  DELETE FROM everstate.snapshots s USING old o
  WHERE s.log_id = o.log_id AND s.entity_key = o.entity_key AND s.seq = o.seq
    AND s.removed_at = o.removed_at
    AND NOT EXISTS (SELECT FROM everstate.operations p
      WHERE p.operation_id = o.removed_by AND NOT p.items_gone)
    AND NOT EXISTS (SELECT FROM everstate.entity_marks m
      WHERE m.log_id = o.log_id AND m.entity_key = o.entity_key AND m.held)
  RETURNING s.seq
)
SELECT o.removed_at, o.log_id, o.entity_key, o.seq, (SELECT count(*) FROM old) AS looked,
  (SELECT count(*) FROM gone) AS gone
FROM old o ORDER BY o.removed_at DESC, o.log_id DESC, o.entity_key DESC, o.seq DESC LIMIT 1
