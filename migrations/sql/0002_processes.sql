-- Leases, and what is known of the running processes.

-- One row a thing that only one process may work on at a time (a segment of a projection, a
-- partition of a consumer group, an operation). A new holder gets the next epoch; work of an old
-- epoch must not commit: kernel/leases.py.
CREATE TABLE everstate.leases (
  kind        text COLLATE "C" NOT NULL,
  name        text COLLATE "C" NOT NULL,
  holder      text NOT NULL,
  epoch       bigint NOT NULL,
  acquired_at timestamptz NOT NULL,
  expires_at  timestamptz NOT NULL,
  PRIMARY KEY (kind, name)
) WITH (fillfactor = 50);

-- Every running process. One that has not been seen for three terms is gone.
CREATE TABLE everstate.members (
  member_id  uuid PRIMARY KEY,
  kind       text COLLATE "C" NOT NULL CHECK (kind IN ('node', 'worker', 'admin', 'sidecar')),
  name       text NOT NULL,                    -- host:pid
  address    text NOT NULL DEFAULT '',
  version    text NOT NULL,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  details    jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);

-- Figures of the processes every 10 seconds, kept 48 hours, for the console's charts.
CREATE TABLE everstate.vitals (
  at        timestamptz NOT NULL,
  member_id uuid NOT NULL,
  figures   jsonb NOT NULL,
  PRIMARY KEY (member_id, at)
);
CREATE INDEX vitals_at ON everstate.vitals (at);
