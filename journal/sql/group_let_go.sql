-- Events that were held back are delivered: their group does not hold back any more. $1 group.
-- Index: parked_events_pkey.
UPDATE everstate.parked_events SET state = 'replaying' WHERE group_id = $1 AND state = 'held'
