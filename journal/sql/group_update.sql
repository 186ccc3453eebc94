-- Changes settings of a group; nulls stay. $1 name, $2 expected version (0: any), $3 entity types,
-- $4 event types, $5 entity window, $6 ack timeout, $7 most attempts, $8 and $9 backoff, $10 skip
-- parked, $11 most parked. Row: group_id, skip_parked; no row: there is none, or of another version.
-- Index: consumer_groups_name_key.
UPDATE everstate.consumer_groups SET
  entity_types = coalesce($3::text[], entity_types), event_types = coalesce($4::text[], event_types),
  entity_window = coalesce($5::int, entity_window), ack_timeout = coalesce($6::interval, ack_timeout),
  max_attempts = coalesce($7::int, max_attempts), backoff_min = coalesce($8::interval, backoff_min),
  backoff_max = coalesce($9::interval, backoff_max), skip_parked = coalesce($10::boolean, skip_parked),
  max_parked = coalesce($11::int, max_parked), version = version + 1
WHERE name = $1 AND ($2::bigint = 0 OR version = $2)
RETURNING group_id, skip_parked
