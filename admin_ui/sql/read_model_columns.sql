-- The columns of a view of a read model, with what only its table knows: nulls and the key.
-- $1 schema of the view, $2 view and table, $3 schema of the table.
-- Row: name, type, base (type under a domain: to cast to), category (pg_type.typcategory), not_null,
-- key (place in the primary or, if there is none, another unique key; null: none), orderable.
SELECT a.attname::text AS name, pg_catalog.format_type(a.atttypid, -1) AS type,
  pg_catalog.format_type(t.base, -1) AS base, b.typcategory::text AS category,
  coalesce(u.attnotnull, false) AS not_null,
  CASE WHEN k.place < k.columns THEN k.place END AS key,
  b.typcategory = 'E' OR (
    -- Readers may not name types of the build's own schema.
    b.typnamespace IS DISTINCT FROM to_regnamespace(quote_ident($3)) AND (
      b.typcategory IN ('S', 'A', 'R', 'I') OR EXISTS (
        SELECT FROM pg_catalog.pg_opclass o JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod
        WHERE m.amname = 'btree' AND o.opcdefault AND o.opcintype = b.oid))) AS orderable
FROM pg_catalog.pg_attribute a
CROSS JOIN LATERAL (
  SELECT coalesce(nullif(x.typbasetype, 0), x.oid) AS base
  FROM pg_catalog.pg_type x WHERE x.oid = a.atttypid) t
JOIN pg_catalog.pg_type b ON b.oid = t.base
LEFT JOIN pg_catalog.pg_attribute u
  ON u.attrelid = to_regclass(format('%I.%I', $3::text, $2::text)) AND u.attname = a.attname
LEFT JOIN LATERAL (
  SELECT array_position(i.indkey::smallint[], u.attnum) AS place, i.indnkeyatts AS columns
  FROM pg_catalog.pg_index i
  WHERE i.indexrelid = (
    SELECT x.indexrelid FROM pg_catalog.pg_index x
    WHERE x.indrelid = u.attrelid AND x.indisunique AND x.indisvalid AND x.indimmediate
      AND x.indpred IS NULL AND x.indexprs IS NULL
      AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute y
        WHERE y.attrelid = x.indrelid AND y.attnum = ANY (x.indkey) AND NOT y.attnotnull)
    ORDER BY x.indisprimary DESC, x.indnatts, x.indexrelid LIMIT 1)) k ON true
WHERE a.attrelid = to_regclass(format('%I.%I', $1::text, $2::text))
  AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
