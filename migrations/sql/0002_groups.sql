-- Consumer groups: docs/explanation/consumer-groups.md, ADR 10.

-- One row a group.
CREATE TABLE everstate.consumer_groups (
  group_id      bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  name          text COLLATE "C" NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
  log_id        int NOT NULL REFERENCES everstate.logs,
  entity_types  text[] NOT NULL,               -- empty: all
  event_types   text[] NOT NULL,
  global_order  boolean NOT NULL,
  entity_window int NOT NULL,
  ack_timeout   interval NOT NULL,
  max_attempts  int NOT NULL,
  backoff_min   interval NOT NULL,
  backoff_max   interval NOT NULL,
  skip_parked   boolean NOT NULL,
  max_parked    int NOT NULL,
  version       bigint NOT NULL DEFAULT 1,
  created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who is connected, to any node. A member whose term has passed is gone, and what it had is free.
CREATE TABLE everstate.group_members (
  member_id  uuid PRIMARY KEY,
  group_id   bigint NOT NULL REFERENCES everstate.consumer_groups ON DELETE CASCADE,
  name       text NOT NULL,
  node       text NOT NULL,
  joined_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX group_members_group ON everstate.group_members (group_id, joined_at, member_id);

-- Where a group is, a partition a row, written by the node of its holder. Everything that matches
-- at or below `watermark` is settled but for `pending`. The three arrays go together: position,
-- attempts that failed, microseconds (Unix epoch) before which it must not be delivered.
CREATE TABLE everstate.group_partitions (
  group_id       bigint NOT NULL REFERENCES everstate.consumer_groups ON DELETE CASCADE,
  partition      int NOT NULL,
  first_slice    smallint NOT NULL,
  last_slice     smallint NOT NULL,
  watermark      bigint NOT NULL,
  pending        bigint[] NOT NULL DEFAULT '{}',
  attempts       int[] NOT NULL DEFAULT '{}',
  due_us         bigint[] NOT NULL DEFAULT '{}',
  holder         uuid,                         -- of group_members; null: free
  epoch          bigint NOT NULL DEFAULT 0,    -- grows with every holder and every seek
  parked         bigint NOT NULL DEFAULT 0,    -- rows in parked_events
  parked_version bigint NOT NULL DEFAULT 0,    -- grows when others than the holder change those
  PRIMARY KEY (group_id, partition)
) WITH (fillfactor = 30);

-- Events that were put aside. 'parked': waits for a decision. 'held': waits behind a parked one of
-- its entity. 'replaying': is delivered (again) by the partition's holder, not before `due_at`.
CREATE TABLE everstate.parked_events (
  group_id    bigint NOT NULL REFERENCES everstate.consumer_groups ON DELETE CASCADE,
  position    bigint NOT NULL,
  partition   int NOT NULL,
  sequence    bigint NOT NULL,
  entity_type text COLLATE "C" NOT NULL,
  entity_id   text COLLATE "C" NOT NULL,
  event_type  text COLLATE "C" NOT NULL,
  state       text NOT NULL CHECK (state IN ('parked', 'held', 'replaying')),
  reason      text NOT NULL,
  attempts    int NOT NULL,
  tries       int NOT NULL DEFAULT 0,          -- failures of the replay under way
  parked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  due_at      timestamptz NOT NULL DEFAULT '-infinity',
  PRIMARY KEY (group_id, position)
);
CREATE INDEX parked_events_entity
  ON everstate.parked_events (group_id, entity_type, entity_id, position);
CREATE INDEX parked_events_replaying
  ON everstate.parked_events (group_id, partition, position) WHERE state = 'replaying';
CREATE INDEX parked_events_partition
  ON everstate.parked_events (group_id, partition, entity_type, entity_id);
