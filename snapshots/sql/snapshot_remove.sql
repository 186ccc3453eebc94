-- Marks a snapshot of an entity, whose marks are locked by this transaction, as removed: never the one
-- that the floor rests on, never one of the newest, nothing of what is held.
-- $1 log, $2 entity key, $3 sequence number, $4 so many newest ones stay. Row: whether the floor rests
-- on it, whether it is one of the newest, whether a hold is on the entity; the snapshot's type and size;
-- no row: there is no such snapshot. Index: primary key of
-- snapshots.
WITH newest AS MATERIALIZED (
  SELECT x.seq FROM everstate.snapshots x
  WHERE x.log_id = $1 AND x.entity_key = $2 AND x.removed_at IS NULL
  ORDER BY x.seq DESC LIMIT $4
), judged AS MATERIALIZED (
  SELECT x.seq, coalesce(x.seq = m.snapshot_seq, false) AS covers,
    EXISTS (SELECT FROM newest n WHERE n.seq = x.seq) AS is_new, m.held,
    x.type, octet_length(x.payload) AS size
  FROM everstate.snapshots x
  JOIN everstate.entity_marks m ON m.log_id = x.log_id AND m.entity_key = x.entity_key
  WHERE x.log_id = $1 AND x.entity_key = $2 AND x.seq = $3 AND x.removed_at IS NULL
), gone AS (
  UPDATE everstate.snapshots s SET removed_at = clock_timestamp(), removed_by = NULL
  FROM judged j
  WHERE NOT j.covers AND NOT j.is_new AND NOT j.held AND s.log_id = $1 AND s.entity_key = $2 AND s.seq = j.seq
)
SELECT j.covers, j.is_new, j.held, j.type, j.size FROM judged j
