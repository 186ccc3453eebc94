-- What compacted entities of a type rest on that settings would make useless: types of snapshots, few.
-- Goes from one type to the next in the index, so what stays usable costs nothing, however many there are.
-- $1 entity type, $2 its settings to be, $3 counts no further than this. Row: snapshot_type, entities.
-- Index: entity_types_name_key, entity_marks_floors.
WITH RECURSIVE ours AS MATERIALIZED (
  SELECT t.type_id FROM everstate.entity_types t WHERE t.name = $1
), rests(name) AS (
  SELECT (SELECT m.floor_snapshot FROM everstate.entity_marks m
    WHERE m.floor_type_id = (SELECT o.type_id FROM ours o) ORDER BY m.floor_snapshot LIMIT 1)
  UNION ALL
  SELECT (SELECT m.floor_snapshot FROM everstate.entity_marks m
    WHERE m.floor_type_id = (SELECT o.type_id FROM ours o) AND m.floor_snapshot > r.name
    ORDER BY m.floor_snapshot LIMIT 1)
  FROM rests r WHERE r.name IS NOT NULL
)
SELECT r.name AS snapshot_type, n.entities
FROM rests r
CROSS JOIN LATERAL (
  SELECT count(*) AS entities FROM (
    SELECT FROM everstate.entity_marks m
    WHERE m.floor_type_id = (SELECT o.type_id FROM ours o) AND m.floor_snapshot = r.name
    LIMIT $3) x) n
WHERE r.name IS NOT NULL AND NOT everstate.snapshot_is_usable_v1($2::jsonb, r.name)
