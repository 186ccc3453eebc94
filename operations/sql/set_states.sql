-- Sets the states of entities; it holds the log's row until the transaction ends, so it comes last.
-- $1 log, $2 types, $3 ids, $4 states that may be left, $5 new states.
-- Rows: entity_key, state_before; see migrations/sql/set_entity_states_v1.sql.
SELECT s.entity_key, s.state_before FROM everstate.set_entity_states_v1($1, $2, $3, $4, $5) s
