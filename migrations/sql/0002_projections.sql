-- Projections: what is registered, how far each has come, what it could not apply.
-- A build is one filling of a version's tables, in a schema of its own, rm_<name>_v<version> (later
-- ones …_r<build>), made by create_read_model_v1; readers use the views in rm_<name>, made by
-- publish_read_model_v1. docs/adr/0011-rebuild.md.

-- One row a projection: which build readers see. Its row lock orders commits, pauses and switches.
CREATE TABLE everstate.projections (
  name             text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
  live_version     int NOT NULL,
  live_build       int NOT NULL,
  paused           boolean NOT NULL DEFAULT false,
  pause_reason     text NOT NULL DEFAULT '',
  paused_at        timestamptz,
  created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  switched_at      timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- One row a version that was ever registered; its digest never changes.
CREATE TABLE everstate.projection_versions (
  name             text COLLATE "C" NOT NULL REFERENCES everstate.projections,
  version          int NOT NULL CHECK (version > 0),
  kind             text NOT NULL CHECK (kind IN ('python', 'sql')),
  digest           text NOT NULL,              -- SHA-256 over code and SQL, hexadecimal
  source           text NOT NULL DEFAULT '',   -- of SQL-only projections: enough to run them
  log_id           int NOT NULL REFERENCES everstate.logs,
  entity_types     text[] NOT NULL,            -- empty: all
  event_types      text[] NOT NULL,            -- empty: all
  segments         int NOT NULL CHECK (segments BETWEEN 1 AND 1024),
  on_poison        text NOT NULL CHECK (on_poison IN ('halt', 'park')),
  replayable       boolean NOT NULL,           -- it declares how an entity is deleted
  registered_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (name, version)
);

CREATE TABLE everstate.projection_builds (
  name             text COLLATE "C" NOT NULL,
  version          int NOT NULL,
  build            int NOT NULL CHECK (build > 0),
  -- ordered: a worker that has the code makes the schema, then it is building
  state            text NOT NULL CHECK (
    state IN ('ordered', 'building', 'ready', 'live', 'previous', 'retired', 'failed')),
  schema_name      text NOT NULL,
  role_name        text NOT NULL,              -- owns the tables; the build's writes run as this role
  tables           text[] NOT NULL,
  target_position  bigint NOT NULL,            -- the head when it was made: up to it, it replays
  stop_position    bigint,                     -- no batch goes beyond, until stop_until; null: none
  stop_until       timestamptz,                -- so that whoever set the stop may die
  auto_switch      boolean NOT NULL DEFAULT false, -- goes live by itself as soon as it is ready
  error            jsonb,
  created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  ready_at         timestamptz,
  live_at          timestamptz,
  previous_at      timestamptz,
  retired_at       timestamptz,
  dropped_at       timestamptz,                -- its schema is gone
  PRIMARY KEY (name, version, build),
  FOREIGN KEY (name, version) REFERENCES everstate.projection_versions
);
CREATE UNIQUE INDEX projection_builds_live ON everstate.projection_builds (name) WHERE state = 'live';

-- One row a segment of a build: a contiguous range of slices, applied by one worker at a time (leases
-- of kind 'segment'). It is written in the very transaction that writes the projection's tables.
CREATE TABLE everstate.projection_checkpoints (
  name        text COLLATE "C" NOT NULL,
  version     int NOT NULL,
  build       int NOT NULL,
  segment     int NOT NULL,
  first_slice smallint NOT NULL,
  last_slice  smallint NOT NULL,
  position    bigint NOT NULL DEFAULT 0,       -- everything up to here has been applied
  events      bigint NOT NULL DEFAULT 0,       -- how many were
  state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'halted')),
  error       jsonb,                           -- why it halted
  updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (name, version, build, segment),
  FOREIGN KEY (name, version, build) REFERENCES everstate.projection_builds
) WITH (fillfactor = 50);

-- Events that a build could not apply and was told to pass over.
CREATE TABLE everstate.projection_parked (
  name        text COLLATE "C" NOT NULL,
  version     int NOT NULL,
  build       int NOT NULL,
  position    bigint NOT NULL,
  segment     int NOT NULL,
  entity_type text NOT NULL,
  entity_id   text NOT NULL,
  event_type  text NOT NULL,
  error       jsonb NOT NULL,
  attempts    int NOT NULL DEFAULT 1,
  parked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (name, version, build, position),
  FOREIGN KEY (name, version, build) REFERENCES everstate.projection_builds
);
