-- The newest snapshot of each entity that its events can be compacted to: not removed, of a type that
-- loads use, verified since the newest version of the type's fold is known (or its owner's, where that
-- is trusted), its place in the log known.
-- $1 log, $2 entity type, $3 entity keys, $4 of each the last sequence number that may go, $5 highest
-- position of what it covers (null: no bound). Row: entity key, sequence number, position; none: there
-- is no such snapshot. Index: primary key of snapshots.
SELECT w.key, s.seq, s.position
FROM (
  SELECT y.settings, coalesce((y.settings->>'trust_snapshots')::bool, false) AS trust,
    coalesce((SELECT f.registered_at FROM everstate.folds f WHERE f.entity_type = y.name
      ORDER BY f.version DESC LIMIT 1), '-infinity') AS since
  FROM everstate.entity_types y WHERE y.type_id = $2) t
CROSS JOIN unnest($3::bigint[], $4::bigint[]) w(key, last)
CROSS JOIN LATERAL (
  SELECT x.seq, x.position FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq <= w.last AND x.removed_at IS NULL
    AND (x.verified_at > t.since OR (t.trust AND x.source = 0))
    AND everstate.snapshot_is_usable_v1(t.settings, x.type)
    AND x.position IS NOT NULL
    AND ($5::bigint IS NULL OR x.position <= $5::bigint)
  ORDER BY x.seq DESC LIMIT 1) s
