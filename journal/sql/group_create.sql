-- Makes a group and its partitions, unless there is one of that name. $1 name, $2 log, $3 entity
-- types, $4 event types, $5 global order, $6 entity window, $7 ack timeout, $8 most attempts, $9 and
-- $10 backoff, $11 skip parked, $12 most parked, $13 and $14 first and last slices of the
-- partitions, $15 watermark. Row: group_id; no row: the name is taken. Index: consumer_groups_name_key.
WITH made AS (
  INSERT INTO everstate.consumer_groups (name, log_id, entity_types, event_types, global_order,
    entity_window, ack_timeout, max_attempts, backoff_min, backoff_max, skip_parked, max_parked)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
  ON CONFLICT (name) DO NOTHING RETURNING group_id
), parts AS (
  INSERT INTO everstate.group_partitions (group_id, partition, first_slice, last_slice, watermark)
  SELECT m.group_id, w.n - 1, w.first, w.last, $15
  FROM made m, unnest($13::smallint[], $14::smallint[]) WITH ORDINALITY w(first, last, n)
)
SELECT group_id FROM made
