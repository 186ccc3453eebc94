-- Replays of entities into the live build of a projection: delete what an entity left, apply its events
-- again. docs/adr/0011-rebuild.md.
CREATE TABLE everstate.projection_replays (
  replay_id    uuid PRIMARY KEY,
  name         text COLLATE "C" NOT NULL,
  version      int NOT NULL,
  build        int NOT NULL,
  state        text NOT NULL CHECK (state IN ('running', 'done', 'failed', 'cancelled')),
  -- one of: {"entities": [[type, id], …]}, {"types": [type, …]}, {"from": position, "to": position}
  selection    jsonb NOT NULL,
  rate         double precision,               -- events a second and segment; null: as fast as it goes
  reason       text NOT NULL,
  principal    text NOT NULL,                  -- who ordered it
  error        jsonb,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  finished_at  timestamptz,
  FOREIGN KEY (name, version, build) REFERENCES everstate.projection_builds
);
CREATE INDEX projection_replays_name ON everstate.projection_replays (name, created_at);
-- One at a time for each build.
CREATE UNIQUE INDEX projection_replays_running ON everstate.projection_replays (name, version, build)
  WHERE state = 'running';

-- How far each segment has come with a replay; written in the transaction that replays an entity.
CREATE TABLE everstate.projection_replay_segments (
  replay_id  uuid NOT NULL REFERENCES everstate.projection_replays ON DELETE CASCADE,
  segment    int NOT NULL,
  state      text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done')),
  cursor     jsonb NOT NULL DEFAULT '{}',      -- where the enumeration of entities goes on
  entities   bigint NOT NULL DEFAULT 0,        -- replayed so far
  events     bigint NOT NULL DEFAULT 0,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (replay_id, segment)
) WITH (fillfactor = 50);
