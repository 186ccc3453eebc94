-- projections: being built.
SELECT 1;
