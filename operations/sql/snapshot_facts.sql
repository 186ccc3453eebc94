-- What decides whether snapshots of entities are to be taken, in the order of the arguments.
-- $1 log; by entity, an array each: $2 key, $3 type, $4 the sequence number that a snapshot is wanted
-- at, $5 first sequence number, $6 first and $7 last position; $8 types of snapshots that folds can
-- load, as "<entity type's id>/<type>"; $9 whether ages are asked for.
-- Row: covered (a snapshot is there that covers, verified since the newest version of the fold is known), taken (one that no fold loads is there), newest (usable
-- snapshot's sequence number, null: none), event_at (of the oldest event after that one; null: none, or
-- not asked for). Index: primary key of snapshots, unique (entity_key, seq) of the chunks.
SELECT coalesce(s.covering, false) AS covered, coalesce(NOT s.covering AND NOT s.loads, false) AS taken,
  u.seq AS newest, v.event_at
FROM unnest($2::bigint[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
  WITH ORDINALITY w(key, type_id, target, first_seq, first_position, last_position, n)
JOIN everstate.entity_types t ON t.type_id = w.type_id
LEFT JOIN LATERAL (
  SELECT coalesce((SELECT f.registered_at FROM everstate.folds f WHERE f.entity_type = t.name
    ORDER BY f.version DESC LIMIT 1), '-infinity') AS since) r ON true
LEFT JOIN LATERAL (
  SELECT x.position IS NOT NULL AND everstate.snapshot_is_usable_v1(t.settings, x.type)
      AND (coalesce(x.verified_at > r.since, false)
        OR x.source = 0 AND coalesce((t.settings ->> 'trust_snapshots')::boolean, false)) AS covering,
    w.type_id || '/' || x.type = ANY ($8::text[]) AS loads
  FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = w.key AND x.seq = w.target AND x.removed_at IS NULL
  LIMIT 1) s ON true
LEFT JOIN LATERAL (
  SELECT x.seq, x.position FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = w.key AND x.removed_at IS NULL
    AND everstate.snapshot_is_usable_v1(t.settings, x.type)
  ORDER BY x.seq DESC LIMIT 1) u ON true
LEFT JOIN LATERAL (
  SELECT everstate.event_time_v1(x.metadata, x.recorded_at) AS event_at FROM everstate.events x
  WHERE $9 AND x.log_id = $1 AND x.entity_key = w.key AND x.seq = coalesce(u.seq + 1, w.first_seq)
    AND x.position BETWEEN coalesce(u.position, w.first_position) AND w.last_position
  LIMIT 1) v ON true
ORDER BY w.n
