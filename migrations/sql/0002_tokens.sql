-- Who may do what over HTTP, and what was done already.

-- A token is a random 256-bit secret; only its SHA-256 is here. Rows stay after the end of a token:
-- they say who made it and who ended it.
CREATE TABLE everstate.tokens (
  token_id     uuid PRIMARY KEY,
  name         text COLLATE "C" NOT NULL,
  digest       bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
  role         text COLLATE "C" NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
  grants       text[] NOT NULL DEFAULT '{}' CHECK (grants <@ ARRAY['payload']),
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  created_by   text NOT NULL,
  expires_at   timestamptz NOT NULL,
  revoked_at   timestamptz,
  revoked_by   text,
  last_used_at timestamptz,                    -- to five minutes
  CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
) WITH (fillfactor = 70);
-- One token of a name that is not ended.
CREATE UNIQUE INDEX tokens_name ON everstate.tokens (name) WHERE revoked_at IS NULL;

-- The answers of POSTs that came with an Idempotency-Key, kept a day: the same request again gets
-- the same answer and acts no second time.
CREATE TABLE everstate.request_results (
  principal    text COLLATE "C" NOT NULL,
  key          text COLLATE "C" NOT NULL,
  digest       bytea NOT NULL CHECK (octet_length(digest) = 32),  -- of method, path, query, body
  began_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  locked_until timestamptz NOT NULL,           -- until then a process is at work on it
  status       smallint,                       -- null: not done
  body         bytea,
  PRIMARY KEY (principal, key)
);
CREATE INDEX request_results_began_at ON everstate.request_results (began_at);
