-- descriptors: being built.
SELECT 1;
