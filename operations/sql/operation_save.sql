-- Writes what may change of an operation whose row is locked. $1 id, $2 state, $3 wish, $4 who applied
-- it, $5 when, $6 why, $7 who did so second, $8 when, $9 started, $10 finished, $11 end of the time
-- for undo, $12 who undid it, $13 why, $14 cursor, $15 done, $16 skipped, $17 failed, $18 undone,
-- $19 events, $20 bytes, $21 why it waits, $22 the kind's note, $23 error, $24 identity of who applied
-- it, $25 whether failed items are tried once more, $26 whether its items were deleted.
-- Row: version. Index: operations_pkey.
UPDATE everstate.operations SET state = $2, wish = $3, applied_by = $4, applied_at = $5, reason = $6,
  seconded_by = $7, seconded_at = $8, started_at = $9, finished_at = $10, undo_until = $11,
  undone_by = $12, undo_reason = $13, cursor = $14, done = $15, skipped = $16, failed = $17,
  undone = $18, events = $19, bytes = $20, waits = $21, note = $22, error = $23, applied_key = $24,
  retrying = $25, items_gone = $26, version = version + 1, updated_at = clock_timestamp(),
  acted_at = CASE WHEN (done, skipped, failed) IS DISTINCT FROM ($15, $16, $17) THEN clock_timestamp()
    ELSE acted_at END
WHERE operation_id = $1
RETURNING version
