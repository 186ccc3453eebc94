-- tokens: being built.
SELECT 1;
