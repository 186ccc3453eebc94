-- The segments of a build, with who works on each. $1 name, $2 version, $3 build, $4 segments after
-- this one, $5 rows at most. Row: `projections.control.SegmentRow`.
-- Index: projection_checkpoints_pkey, leases_pkey.
SELECT c.segment, c.first_slice, c.last_slice, c.position, c.events, c.state, c.error, c.updated_at,
  l.holder, l.expires_at AS lease_expires_at
FROM everstate.projection_checkpoints c
LEFT JOIN everstate.leases l ON l.kind = 'segment' AND l.expires_at > clock_timestamp()
  AND l.name = c.name || '/' || c.version || '/' || c.build || '/' || c.segment
WHERE c.name = $1 AND c.version = $2 AND c.build = $3 AND c.segment > $4
ORDER BY c.segment LIMIT $5
