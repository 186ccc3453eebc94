-- Deletes some snapshots that were removed long ago and that no undo can bring back.
-- $1 removed before this time, $2 so many at most. Row: one for each. Index: snapshots_removed.
DELETE FROM everstate.snapshots s
USING (
  SELECT x.log_id, x.entity_key, x.seq FROM everstate.snapshots x
  WHERE x.removed_at < $1 AND NOT EXISTS (
    SELECT FROM everstate.operations o
    WHERE o.operation_id = x.removed_by AND o.undo_until > clock_timestamp())
  ORDER BY x.removed_at LIMIT $2) old
WHERE s.log_id = old.log_id AND s.entity_key = old.entity_key AND s.seq = old.seq AND s.removed_at < $1
RETURNING s.seq
