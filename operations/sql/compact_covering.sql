-- The newest snapshot of each entity that its events can be compacted to: not removed, of a type that
-- loads use, verified (or its owner's, where that is trusted), its place in the log known.
-- $1 log, $2 entity type, $3 entity keys, $4 highest position of what it covers, $5 event time before
-- which its newest event is (null: no bounds). Row: entity key, sequence number, position; none: there
-- is no such snapshot. Index: primary key of snapshots.
SELECT w.key, s.seq, s.position
FROM (
  SELECT y.settings, coalesce((y.settings->>'trust_snapshots')::bool, false) AS trust
  FROM everstate.entity_types y WHERE y.type_id = $2) t
CROSS JOIN unnest($3::bigint[]) w(key)
CROSS JOIN LATERAL (
  SELECT x.seq, x.position FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = w.key AND x.removed_at IS NULL
    AND (x.verified_at IS NOT NULL OR (t.trust AND x.source = 0))
    AND everstate.snapshot_is_usable_v1(t.settings, x.type)
    AND x.position IS NOT NULL
    AND ($4::bigint IS NULL OR x.position <= $4::bigint)
    AND ($5::timestamptz IS NULL OR x.event_at < $5::timestamptz)
  ORDER BY x.seq DESC LIMIT 1) s
