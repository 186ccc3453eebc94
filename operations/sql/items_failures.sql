-- Why items of an operation were skipped, failed or not undone, most frequent first. $1 operation, $2
-- groups at most. Row: state, reason, count, up to three examples as type/id.
-- Index: operation_items_odd, operation_items_pkey.
SELECT g.state, g.reason, g.count, ARRAY(
  SELECT coalesce(t.name || '/', '') || i.entity_id
  FROM everstate.operation_items i
  LEFT JOIN everstate.entity_types t ON t.type_id = i.entity_type_id
  WHERE i.operation_id = $1 AND i.no = ANY (g.first) ORDER BY i.no) AS examples
FROM (
  SELECT x.state, x.reason, count(*) AS count, (array_agg(x.no ORDER BY x.no))[1:3] AS first
  FROM everstate.operation_items x WHERE x.operation_id = $1 AND x.state IN (2, 3, 5)
  GROUP BY x.state, x.reason ORDER BY count(*) DESC, x.state, x.reason LIMIT $2
) g
ORDER BY g.count DESC, g.state, g.reason
