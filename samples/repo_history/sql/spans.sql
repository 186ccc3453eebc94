-- projection: spans
-- version: 1
-- entity types: file
-- on poison: halt
--
-- When each path was there. The files of a date:
--   SELECT path FROM rm_spans.spans
--   WHERE alive_from <= '2022-01-01' AND (alive_to IS NULL OR alive_to > '2022-01-01')
CREATE TABLE spans (
  path       text NOT NULL,
  alive_from timestamptz NOT NULL,  -- the time of the commit, not of the import
  alive_to   timestamptz,           -- null: still there
  PRIMARY KEY (path, alive_from)
);
CREATE INDEX spans_at ON spans (alive_from, alive_to);

-- on: FileAdded
-- Two branches may add the same file: it is there once. Deleted and added at one time, it stayed.
INSERT INTO spans (path, alive_from)
SELECT (:meta.entity_id)::text, (:meta.time)::timestamptz
WHERE NOT EXISTS (SELECT FROM spans WHERE path = :meta.entity_id AND alive_to IS NULL)
ON CONFLICT (path, alive_from) DO UPDATE SET alive_to = NULL;

-- on: FileDeleted, FileRenamed
UPDATE spans SET alive_to = :meta.time WHERE path = :meta.entity_id AND alive_to IS NULL;

-- delete entity
DELETE FROM spans WHERE path = :meta.entity_id;
