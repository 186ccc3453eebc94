-- Keeps a plan. $1 id, $2 kind, $3 id of the log (null: none), $4 target, $5 selection, $6 parameters,
-- $7 what the plan says, $8 digest, $9 head, $10 items, $11 who planned it, $12 how long it is good,
-- $13 items a second (null: the throttle decides), $14 when it was begun: ages count from there.
-- Row: operation_id. Index: operations_pkey.
INSERT INTO everstate.operations (operation_id, kind, state, log_id, target, selection, parameters,
  plan, digest, head, items, planned_by, planned_at, expires_at, rate)
VALUES ($1, $2, 'planned', $3, $4, $5, $6, $7, $8, $9, $10, $11, $14,
  clock_timestamp() + $12::interval, $13)
RETURNING operation_id
