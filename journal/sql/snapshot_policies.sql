-- The entity types that want a snapshot every so many events. Row: name, how many.
-- Index: entity_types_set.
SELECT t.name, (t.settings ->> 'snapshot_every')::int AS every
FROM everstate.entity_types t
WHERE t.version > 0 AND (t.settings ->> 'snapshot_every')::int > 0
  AND NOT coalesce((t.settings ->> 'needs_full_replay')::boolean, false)
