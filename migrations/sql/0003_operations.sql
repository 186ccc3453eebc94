-- Operations: plan, apply, watch, receipt, undo. operations/, docs/adr/0015-operations.md.

-- One row an operation, from its plan to its receipt.
CREATE TABLE everstate.operations (
  operation_id  uuid PRIMARY KEY,              -- a UUIDv7: newest last
  kind          text COLLATE "C" NOT NULL,
  state         text NOT NULL CHECK (state IN (
    'planned', 'expired', 'awaiting', 'queued', 'running', 'paused', 'review', 'done', 'failed',
    'cancelled', 'undoing', 'undone')),
  wish          text NOT NULL DEFAULT '' CHECK (wish IN ('', 'pause', 'cancel')),
  log_id        int REFERENCES everstate.logs,
  target        text COLLATE "C" NOT NULL DEFAULT '',  -- projection or group; empty: entities
  selection     jsonb NOT NULL,
  parameters    jsonb NOT NULL,
  plan          jsonb NOT NULL,                -- what the plan says, as people and the API see it
  digest        text NOT NULL,
  head          bigint NOT NULL,               -- of the log when it was planned
  items         bigint NOT NULL,
  planned_by    text NOT NULL,
  planned_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  expires_at    timestamptz NOT NULL,
  applied_by    text,
  applied_at    timestamptz,
  reason        text,
  seconded_by   text,
  seconded_at   timestamptz,
  started_at    timestamptz,
  finished_at   timestamptz,
  undo_until    timestamptz,                   -- null: cannot be undone
  undone_by     text,
  undo_reason   text,
  rate          double precision,              -- items a second at most; null: the throttle decides
  cursor        bigint NOT NULL DEFAULT 0,     -- items up to this one are settled (undo: down to it)
  done          bigint NOT NULL DEFAULT 0,
  skipped       bigint NOT NULL DEFAULT 0,
  failed        bigint NOT NULL DEFAULT 0,
  undone        bigint NOT NULL DEFAULT 0,
  events        bigint NOT NULL DEFAULT 0,     -- of the items that are done
  bytes         bigint NOT NULL DEFAULT 0,
  waits         text NOT NULL DEFAULT '',      -- why it does not get on as fast as it could
  note          jsonb NOT NULL DEFAULT '{}',   -- what the kind keeps for itself
  error         jsonb,
  updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  version       bigint NOT NULL DEFAULT 1,     -- grows with every change: who watches compares it
  applied_key   text,                          -- identity of who applied it: the second one is another
  retrying      boolean NOT NULL DEFAULT false,  -- failed items are tried once more
  items_gone    boolean NOT NULL DEFAULT false,  -- its items are being deleted: no retry, no undo
  items_left    boolean NOT NULL DEFAULT true,   -- some of them may still be there
  acted_at      timestamptz                      -- when its counts changed last
) WITH (fillfactor = 50);
CREATE INDEX operations_active ON everstate.operations (operation_id)
  WHERE state IN ('queued', 'running', 'paused', 'undoing');
CREATE INDEX operations_unapplied ON everstate.operations (expires_at)
  WHERE state IN ('planned', 'awaiting');
CREATE INDEX operations_kind ON everstate.operations (kind, operation_id);
CREATE INDEX operations_never_applied ON everstate.operations (finished_at)
  WHERE applied_at IS NULL AND NOT items_left AND state IN ('expired', 'cancelled');
CREATE INDEX operations_items_kept ON everstate.operations (operation_id) WHERE items_left
  AND state IN ('expired', 'review', 'done', 'failed', 'cancelled', 'undone');

-- What an operation acts on, in order: exactly what was reviewed. An entity, or something else of the
-- kind (`ref`, `position`). `before` is what undo needs.
CREATE TABLE everstate.operation_items (
  operation_id   uuid NOT NULL,
  no             bigint NOT NULL,
  entity_key     bigint,
  entity_type_id int,
  state          smallint NOT NULL DEFAULT 0,  -- 0 planned 1 done 2 skipped 3 failed 4 undone 5 not undone
  entity_id      text COLLATE "C" NOT NULL DEFAULT '',
  sequence       bigint NOT NULL DEFAULT 0,    -- the entity's last sequence number at the plan
  target         bigint NOT NULL DEFAULT 0,    -- of the kind: new floor, snapshot's sequence number, …
  position       bigint NOT NULL DEFAULT 0,
  events         bigint NOT NULL DEFAULT 0,
  bytes          bigint NOT NULL DEFAULT 0,
  reason         text NOT NULL DEFAULT '',     -- why skipped, failed, not undone
  before         jsonb,
  PRIMARY KEY (operation_id, no)
) WITH (fillfactor = 70);
CREATE INDEX operation_items_odd ON everstate.operation_items (operation_id, state, no)
  WHERE state IN (2, 3, 5);

-- How operations of a kind are guarded; missing: the defaults of operations/model.py.
CREATE TABLE everstate.policies (
  kind       text COLLATE "C" PRIMARY KEY,
  settings   jsonb NOT NULL,
  version    bigint NOT NULL DEFAULT 1,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_by text NOT NULL
);

-- Why nothing of an entity may be removed; entity_marks.held says in the same transaction whether
-- there is one.
CREATE TABLE everstate.holds (
  log_id       int NOT NULL,
  entity_key   bigint NOT NULL,
  label        text COLLATE "C" NOT NULL CHECK (label ~ '^[a-z][a-z0-9_]{0,39}$'),
  reason       text NOT NULL,
  principal    text NOT NULL,
  operation_id uuid,
  held_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  entity_type_id int NOT NULL,
  entity_id    text COLLATE "C" NOT NULL,
  PRIMARY KEY (log_id, entity_key, label)
);
CREATE INDEX holds_label ON everstate.holds (log_id, label, entity_type_id, entity_id);

-- Audit events on their way to the log `_system`: written with what they tell of, appended (with their
-- id as append id, so never twice) and deleted soon after by a worker.
CREATE TABLE everstate.audit_outbox (
  audit_id    uuid NOT NULL,                   -- a UUIDv7
  entity_type text COLLATE "C" NOT NULL,
  entity_id   text COLLATE "C" NOT NULL,
  type        text COLLATE "C" NOT NULL,
  data        jsonb NOT NULL,
  principal   text NOT NULL,
  at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  no          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY  -- in order, whatever the clocks say
);

-- What operations began elsewhere: looked up by the operation, so that a kill never begins it twice.
ALTER TABLE everstate.projection_builds
  ADD COLUMN operation_id uuid;                -- that ordered it
ALTER TABLE everstate.consumer_groups
  ADD COLUMN sought_by uuid;                   -- the operation that moved it last; null: a client did
