-- projection: files
-- version: 1
-- entity types: file
-- segments: 2
-- on poison: halt
--
-- One row a path that was ever seen. Every row belongs to one file, so two segments may fill it.
CREATE TABLE files (
  path    text PRIMARY KEY,
  changes bigint NOT NULL,  -- events of every type
  added   bigint NOT NULL,  -- lines; a binary file's count is null and adds nothing
  deleted bigint NOT NULL,
  alive   boolean NOT NULL
);

-- on: FileAdded, FileModified
INSERT INTO files (path, changes, added, deleted, alive)
VALUES (:meta.entity_id, 1, COALESCE((:data.added)::bigint, 0),
        COALESCE((:data.deleted)::bigint, 0), true)
ON CONFLICT (path) DO UPDATE
SET changes = files.changes + 1,
    added   = files.added + EXCLUDED.added,
    deleted = files.deleted + EXCLUDED.deleted,
    alive   = true;

-- on: FileDeleted, FileRenamed
INSERT INTO files (path, changes, added, deleted, alive)
VALUES (:meta.entity_id, 1, 0, COALESCE((:data.deleted)::bigint, 0), false)
ON CONFLICT (path) DO UPDATE
SET changes = files.changes + 1,
    deleted = files.deleted + EXCLUDED.deleted,
    alive   = false;

-- delete entity
DELETE FROM files WHERE path = :meta.entity_id;
