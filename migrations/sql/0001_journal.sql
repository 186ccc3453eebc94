-- The journal: logs, batches, events in chunks, entities, snapshots. Written for the schema
-- `everstate`; another schema's name is put in its place before it runs (kernel/sql.py).
-- Why each thing is as it is: docs/explanation/storage.md.

-- One row a log. Every append locks its row first; nothing on the hot path updates it, so that an
-- old snapshot (a backup, a report) never makes it slow.
CREATE TABLE everstate.logs (
  log_id     int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  name       text COLLATE "C" NOT NULL UNIQUE CHECK (name ~ '^[a-z_][a-z0-9_]{0,39}$'),
  chunk_size bigint NOT NULL CHECK (chunk_size BETWEEN 16 AND 1073741824),
  epoch      int NOT NULL DEFAULT 1,
  settings   jsonb NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row a commit, insert-only. The log's head is its last row; first = previous last + 1 proves
-- that there is no hole.
CREATE TABLE everstate.batches (
  last_position   bigint NOT NULL,
  first_position  bigint NOT NULL,
  recorded_at     timestamptz NOT NULL,
  last_entity_key bigint NOT NULL,
  bytes_total     bigint NOT NULL,
  log_id          int NOT NULL,
  node            text NOT NULL,
  digest          bytea,                       -- reserved: a hash chain over the batches
  PRIMARY KEY (log_id, last_position)
);
CREATE INDEX batches_recorded_at ON everstate.batches (log_id, recorded_at, last_position);

-- Dictionaries: a row is made before the first append that needs it, in its own transaction.
CREATE TABLE everstate.entity_types (
  type_id  int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  name     text COLLATE "C" NOT NULL UNIQUE,
  settings jsonb NOT NULL DEFAULT '{}'
);
CREATE TABLE everstate.event_types (
  type_id        int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  name           text COLLATE "C" NOT NULL,
  content_type   text COLLATE "C" NOT NULL,
  schema_version int NOT NULL DEFAULT 0,
  UNIQUE (name, content_type, schema_version)
);

-- Events: by log, then by ranges of positions (chunks, made and attached ahead of need by
-- create_chunk_v1; never PARTITION OF, no DEFAULT partition). Indexes are on the chunks.
CREATE TABLE everstate.events (
  position       bigint NOT NULL,
  entity_key     bigint NOT NULL,
  seq            bigint NOT NULL,
  recorded_at    timestamptz NOT NULL,
  prev_position  bigint,                       -- the entity's event before; null: its first
  event_id       uuid NOT NULL,
  log_id         int NOT NULL,
  type_id        int NOT NULL,
  entity_type_id int NOT NULL,
  slice          smallint NOT NULL,
  flags          smallint NOT NULL,
  key_id         int,                          -- reserved: key of the subject
  entity_id      text COLLATE "C" NOT NULL,
  payload        bytea NOT NULL,
  metadata       jsonb                         -- null when empty
) PARTITION BY LIST (log_id);

-- Chunk map: one row a chunk of a log.
CREATE TABLE everstate.chunks (
  log_id        int NOT NULL,
  chunk_no      int NOT NULL,
  first         bigint NOT NULL,
  last          bigint NOT NULL,
  state         text NOT NULL DEFAULT 'open'
                CHECK (state IN ('open', 'sealed', 'archived', 'detaching', 'detached', 'dropped')),
  generation    int NOT NULL DEFAULT 1,
  table_name    text,
  rows          bigint,
  removed_count bigint NOT NULL DEFAULT 0,
  removed       bytea,                         -- bitmap of removed positions; null: none
  bytes         bigint,
  seq_digest    bytea,
  first_at      timestamptz,
  last_at       timestamptz,
  types         int[],
  PRIMARY KEY (log_id, chunk_no)
);

-- The head of each entity: the compare-and-set of appends and the uniqueness of sequence numbers.
-- Only columns that appends own, so that operations never lock what appends lock.
CREATE TABLE everstate.entities (
  entity_key     bigint NOT NULL,
  last_seq       bigint NOT NULL,
  event_count    bigint NOT NULL,
  first_position bigint NOT NULL,
  last_position  bigint NOT NULL,
  log_id         int NOT NULL,
  type_id        int NOT NULL,
  slice          smallint NOT NULL,
  state          smallint NOT NULL DEFAULT 0,  -- 0 active; 1 deleted; 2 tombstoned
  entity_id      text COLLATE "C" NOT NULL,
  PRIMARY KEY (log_id, type_id, entity_id)
) PARTITION BY HASH (log_id, type_id, entity_id);

-- What operations know of an entity.
CREATE TABLE everstate.entity_marks (
  log_id       int NOT NULL,
  entity_key   bigint NOT NULL,
  floor        bigint NOT NULL DEFAULT 1,
  snapshot_seq bigint,
  held         boolean NOT NULL DEFAULT false,
  PRIMARY KEY (log_id, entity_key)
);

CREATE TABLE everstate.snapshots (
  entity_key   bigint NOT NULL,
  seq          bigint NOT NULL,
  recorded_at  timestamptz NOT NULL,
  log_id       int NOT NULL,
  flags        smallint NOT NULL DEFAULT 0,
  verified_at  timestamptz,
  type         text COLLATE "C" NOT NULL,
  content_type text COLLATE "C" NOT NULL,
  payload      bytea NOT NULL,
  PRIMARY KEY (log_id, entity_key, seq)
) PARTITION BY HASH (log_id, entity_key);

-- 8 parts: a batch opens each of them, and PostgreSQL 15 has 16 fast-path locks.
DO $$
BEGIN
  FOR i IN 0..7 LOOP
    EXECUTE format('CREATE TABLE everstate.entities_%s PARTITION OF everstate.entities
      FOR VALUES WITH (MODULUS 8, REMAINDER %s) WITH (fillfactor = 80)', i, i);
    EXECUTE format('CREATE TABLE everstate.snapshots_%s PARTITION OF everstate.snapshots
      FOR VALUES WITH (MODULUS 8, REMAINDER %s)', i, i);
  END LOOP;
END $$;

-- Reserved for appends on condition of tags (dynamic consistency boundaries): not used yet.
CREATE TABLE everstate.event_tags (
  log_id   int NOT NULL,
  tag_hash bigint NOT NULL,
  position bigint NOT NULL,
  PRIMARY KEY (log_id, tag_hash, position)
);

-- Results of appends that carried an append_id, by the day inside the id (a UUIDv7).
CREATE TABLE everstate.append_results (
  append_id       uuid NOT NULL,
  day             date NOT NULL,
  log_id          int NOT NULL,
  recorded_at     timestamptz NOT NULL,
  first_position  bigint NOT NULL,
  last_position   bigint NOT NULL,
  content_hash    bytea NOT NULL,
  first_sequences bigint[] NOT NULL,
  PRIMARY KEY (log_id, append_id, day)
) PARTITION BY RANGE (day);
