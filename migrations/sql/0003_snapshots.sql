-- Snapshots that operations can rely on, settings of entity types, folds: snapshots/.

-- What the newest covered event is: compaction and `at` need it without reading events. Null: saved
-- before 0003, and not verified since. A removed snapshot is passed over by readers and kept until
-- its operation can no longer be undone.
ALTER TABLE everstate.snapshots
  ADD COLUMN position   bigint,                -- of the newest event that it covers
  ADD COLUMN event_at   timestamptz,           -- when that happened: the writer's time, else recorded_at
  ADD COLUMN source     smallint NOT NULL DEFAULT 0,  -- 0 the entity's owner, 1 a fold of the platform
  ADD COLUMN removed_at timestamptz,
  ADD COLUMN removed_by uuid;                  -- the operation whose undo brings it back; null: none does
CREATE INDEX snapshots_removed ON everstate.snapshots (removed_at, log_id, entity_key, seq)
  WHERE removed_at IS NOT NULL;

-- The floor is where an entity's readable events begin. A floor above the first event is covered by
-- the snapshot at `snapshot_seq` = floor - 1, whose newest event has the position `floor_position`:
-- readable events have greater ones. Null: the entity's first event, as long as nothing was compacted.
-- With `snapshot_seq` go the entity's type and the snapshot's: by them is refused what would make such
-- snapshots useless.
ALTER TABLE everstate.entity_marks
  ALTER COLUMN floor DROP NOT NULL,
  ALTER COLUMN floor DROP DEFAULT,
  ADD COLUMN floor_position bigint NOT NULL DEFAULT 0,
  ADD COLUMN changed_by     uuid,              -- the operation that moved the floor last
  ADD COLUMN changed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  ADD COLUMN state_by       uuid,              -- the operation that set the entity's state last
  ADD COLUMN floor_type_id  int,               -- null: nothing was compacted
  ADD COLUMN floor_snapshot text COLLATE "C";  -- type of the snapshot that the floor rests on
CREATE INDEX entity_marks_floors ON everstate.entity_marks (floor_type_id, floor_snapshot)
  WHERE floor_type_id IS NOT NULL;

-- Settings per type; `version` for If-Match.
ALTER TABLE everstate.entity_types
  ADD COLUMN version    bigint NOT NULL DEFAULT 0,
  ADD COLUMN updated_at timestamptz,
  ADD COLUMN updated_by text NOT NULL DEFAULT '';
CREATE INDEX entity_types_set ON everstate.entity_types (name) WHERE version > 0;

-- Folds that workers have the code of: one for an entity type; its digest never changes within a version.
CREATE TABLE everstate.folds (
  entity_type   text COLLATE "C" NOT NULL,
  version       int NOT NULL CHECK (version > 0),
  digest        text NOT NULL,                 -- SHA-256 over the code, hexadecimal
  snapshot_type text COLLATE "C" NOT NULL,
  content_type  text COLLATE "C" NOT NULL,
  registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (entity_type, version)
);
