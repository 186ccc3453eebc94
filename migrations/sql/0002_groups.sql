-- groups: being built.
SELECT 1;
