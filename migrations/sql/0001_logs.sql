-- The users' log, and Everstate's own (audit); nothing but users' appends enters `default`.
SELECT everstate.create_log_v1('default', 4194304);
SELECT everstate.create_log_v1('_system', 4194304);
