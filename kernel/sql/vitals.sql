-- Figures of one process, oldest first. $1 member id, $2 after this time, $3 how many.
-- Row: at, figures. Index: vitals_pkey.
SELECT v.at, v.figures FROM everstate.vitals v
WHERE v.member_id = $1 AND v.at > $2 ORDER BY v.at LIMIT $3
