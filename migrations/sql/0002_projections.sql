-- Projections: what is registered, how far each has come, what it could not apply.
-- The tables of a projection's version are in a schema of their own, rm_<name>_v<version>, made by
-- create_read_model_v1; readers use the views in rm_<name>, made by publish_read_model_v1.

-- One row a projection: which of its versions readers see.
CREATE TABLE everstate.projections (
  name             text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
  live_version     int NOT NULL,               -- the views in rm_<name> show its tables
  previous_version int,                        -- kept for a rollback
  paused           boolean NOT NULL DEFAULT false,
  pause_reason     text NOT NULL DEFAULT '',
  paused_at        timestamptz,
  created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  switched_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row a version that was ever registered; its digest never changes.
CREATE TABLE everstate.projection_versions (
  name             text COLLATE "C" NOT NULL REFERENCES everstate.projections,
  version          int NOT NULL CHECK (version > 0),
  state            text NOT NULL
                   CHECK (state IN ('building', 'ready', 'live', 'previous', 'retired', 'failed')),
  kind             text NOT NULL CHECK (kind IN ('python', 'sql')),
  digest           text NOT NULL,              -- SHA-256 over code and SQL, hexadecimal
  source           text NOT NULL DEFAULT '',   -- of SQL-only projections: enough to run them
  log_id           int NOT NULL REFERENCES everstate.logs,
  entity_types     text[] NOT NULL,            -- empty: all
  event_types      text[] NOT NULL,            -- empty: all
  segments         int NOT NULL CHECK (segments BETWEEN 1 AND 1024),
  on_poison        text NOT NULL CHECK (on_poison IN ('halt', 'park')),
  replayable       boolean NOT NULL,           -- it declares how an entity is deleted
  schema_name      text NOT NULL,
  role_name        text NOT NULL,              -- owns the tables; its writes run as this role
  tables           text[] NOT NULL DEFAULT '{}',
  target_position  bigint NOT NULL,            -- the head at registration: up to it, history is replayed
  error            jsonb,
  registered_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  ready_at         timestamptz,
  live_at          timestamptz,
  retired_at       timestamptz,
  PRIMARY KEY (name, version)
);

-- One row a segment: a contiguous range of slices, applied by one worker at a time (leases of kind
-- 'segment'). It is written in the very transaction that writes the projection's tables.
CREATE TABLE everstate.projection_checkpoints (
  name        text COLLATE "C" NOT NULL,
  version     int NOT NULL,
  segment     int NOT NULL,
  first_slice smallint NOT NULL,
  last_slice  smallint NOT NULL,
  position    bigint NOT NULL DEFAULT 0,       -- everything up to here has been applied
  events      bigint NOT NULL DEFAULT 0,       -- how many were
  state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'halted')),
  error       jsonb,                           -- why it halted
  updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (name, version, segment),
  FOREIGN KEY (name, version) REFERENCES everstate.projection_versions
) WITH (fillfactor = 50);

-- Events that a projection could not apply and was told to pass over.
CREATE TABLE everstate.projection_parked (
  name        text COLLATE "C" NOT NULL,
  version     int NOT NULL,
  position    bigint NOT NULL,
  segment     int NOT NULL,
  entity_type text NOT NULL,
  entity_id   text NOT NULL,
  event_type  text NOT NULL,
  error       jsonb NOT NULL,
  attempts    int NOT NULL DEFAULT 1,
  parked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (name, version, position),
  FOREIGN KEY (name, version) REFERENCES everstate.projection_versions
);
