-- The schema as all migrations leave it, to be read from top to bottom. Made by scripts/schema from
-- migrations/sql: do not edit it, and do not run it against a database that is to be migrated later
-- (`everstate migrate` does that).

CREATE SCHEMA everstate;

-- == 0001: 0001_journal

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

-- == 0001: create_chunk_v1

-- Makes the next chunk of a log and attaches it; returns its number.
--
-- One caller at a time (advisory lock). ATTACH with the CHECK over both partition levels needs no
-- scan and locks out no append (docs/explanation/storage.md); it gives up after 20 ms behind a lock
-- (55P03), and the caller tries again.
CREATE FUNCTION everstate.create_chunk_v1(p_log int) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
  size bigint;
  n int;
  a bigint;
  leaf text;
BEGIN
  PERFORM set_config('lock_timeout', '20ms', true);
  PERFORM pg_advisory_xact_lock(hashtext('everstate.create_chunk'), p_log);
  SELECT l.chunk_size INTO STRICT size FROM everstate.logs l WHERE l.log_id = p_log;
  SELECT coalesce(max(c.chunk_no) + 1, 0), coalesce(max(c.last) + 1, 1) INTO n, a
    FROM everstate.chunks c WHERE c.log_id = p_log;
  leaf := format('events_%s_%s', p_log, n);
  EXECUTE format(
    'CREATE TABLE everstate.%1$I (LIKE everstate.events INCLUDING DEFAULTS INCLUDING STORAGE,
       PRIMARY KEY (position), UNIQUE (entity_key, seq),
       CONSTRAINT chunk CHECK (log_id IS NOT NULL AND log_id = %2$s
         AND position IS NOT NULL AND position >= %3$s AND position < %4$s))',
    leaf, p_log, a, a + size);
  EXECUTE format(
    'ALTER TABLE everstate.%I ATTACH PARTITION everstate.%I FOR VALUES FROM (%s) TO (%s)',
    format('events_%s', p_log), leaf, a, a + size);
  INSERT INTO everstate.chunks (log_id, chunk_no, first, last, table_name)
    VALUES (p_log, n, a, a + size - 1, leaf);
  RETURN n;
END $$;

-- == 0001: create_log_v1

-- Makes a log with its first chunk; returns its id, or null when there is one of that name.
-- The batch row of position 0 is where the first append finds the head.
CREATE FUNCTION everstate.create_log_v1(p_name text, p_chunk_size bigint) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
  l int;
BEGIN
  INSERT INTO everstate.logs (name, chunk_size) VALUES (p_name, p_chunk_size)
    ON CONFLICT (name) DO NOTHING RETURNING log_id INTO l;
  IF l IS NULL THEN
    RETURN NULL;
  END IF;
  PERFORM set_config('lock_timeout', '20ms', true);
  EXECUTE format('CREATE TABLE everstate.%I (LIKE everstate.events INCLUDING DEFAULTS INCLUDING STORAGE)
    PARTITION BY RANGE (position)', format('events_%s', l));
  EXECUTE format('ALTER TABLE everstate.events ATTACH PARTITION everstate.%I FOR VALUES IN (%s)',
    format('events_%s', l), l);
  INSERT INTO everstate.batches
      (log_id, last_position, first_position, recorded_at, last_entity_key, bytes_total, node)
    VALUES (l, 0, 1, clock_timestamp(), 0, 0, '');
  PERFORM everstate.create_chunk_v1(l);
  RETURN l;
END $$;

-- == 0001: prepare_append_results_v1

-- Makes the days of append_results from p_from to p_to and drops those before p_keep_from.
-- Returns how many partitions it made and dropped. ATTACH, so that it stalls no append.
CREATE FUNCTION everstate.prepare_append_results_v1(p_from date, p_to date, p_keep_from date)
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  d date;
  leaf text;
  changed int := 0;
BEGIN
  PERFORM set_config('lock_timeout', '20ms', true);
  PERFORM pg_advisory_xact_lock(hashtext('everstate.append_results'), 0);
  FOR d IN SELECT generate_series(p_from, p_to, interval '1 day')::date LOOP
    leaf := 'append_results_' || to_char(d, 'YYYYMMDD');
    IF to_regclass(format('everstate.%I', leaf)) IS NULL THEN
      EXECUTE format(
        'CREATE TABLE everstate.%1$I (LIKE everstate.append_results INCLUDING ALL,
           CONSTRAINT day CHECK (day IS NOT NULL AND day >= %2$L AND day < %3$L))',
        leaf, d, d + 1);
      EXECUTE format(
        'ALTER TABLE everstate.append_results ATTACH PARTITION everstate.%I FOR VALUES FROM (%L) TO (%L)',
        leaf, d, d + 1);
      changed := changed + 1;
    END IF;
  END LOOP;
  FOR leaf IN
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'everstate.append_results'::regclass
      AND c.relname < 'append_results_' || to_char(p_keep_from, 'YYYYMMDD')
  LOOP
    EXECUTE format('DROP TABLE everstate.%I', leaf);
    changed := changed + 1;
  END LOOP;
  RETURN changed;
END $$;

-- == 0001: append_batch_v1

-- Appends a batch: many independent appends, each to one or several entities, in one commit.
--
-- The log's row is locked by a statement of its own, so that every later statement sees all earlier
-- commits (READ COMMITTED, VOLATILE; one statement that locks and judges has a snapshot from before
-- the wait). Positions are handed out under that lock: commit order = position order, and a rollback
-- takes them back. Heads are probed by LATERAL … LIMIT 1 under a generic plan: a plain join becomes
-- a scan of all heads as soon as statistics are fresh (ADR 0002). Sequential scans are off: a plan made
-- and kept while the tables are small would scan them when they have grown.
--
-- Parameters. Members (one an entity of an append; members of an append stand together):
--   a_no      number of the append, 1.. without gaps      a_type, a_id  the entity
--   a_mode    >= 0 exact sequence, -1 any, -2 exists      a_start  its first sequence number, 0: none;
--   null array: none for all
--   a_n       its events in this append                  a_bytes  their payload and metadata bytes
-- Events, in log order: e_grp index of the member, e_idx 1..n within the member, e_back distance to
--   the member's event before within the batch (0: it is in the log, or nowhere; null array: all 0);
--   e_meta null array: none has metadata.
-- Appends with an id (null arrays: none): r_no, r_id, r_day, r_hash.
-- Snapshots (null arrays: none): s_grp index of the member.
-- p_now is the node's clock when it sent the batch.
--
-- Result, one row: the head before; the time; per member: verdict (0 written, -1 written before,
-- 1 wrong sequence, 2 does not exist, 3 deleted, 4 append id used for another content, 9 refused
-- because of another member), sequence before (written) or found (refused), events refused before
-- it in this batch; duplicates: append number, first and last position, time.
--
-- A refused append never spoils its neighbours; position = head + event's ordinal − events refused
-- before it, so there cannot be a hole.
CREATE FUNCTION everstate.append_batch_v1(
  p_log int, p_now timestamptz, p_max_skew_s float8, p_node text,
  a_no int[], a_type int[], a_id text[], a_slice smallint[], a_mode bigint[], a_start bigint[],
  a_n int[], a_bytes bigint[],
  e_grp int[], e_idx int[], e_back int[], e_id uuid[], e_type int[], e_payload bytea[], e_meta jsonb[],
  r_no int[], r_id uuid[], r_day date[], r_hash bytea[],
  s_grp int[], s_type text[], s_content_type text[], s_payload bytea[],
  OUT o_head bigint, OUT o_at timestamptz, OUT o_verdicts int[], OUT o_sequences bigint[],
  OUT o_shifts bigint[], OUT d_no int[], OUT d_first bigint[], OUT d_last bigint[],
  OUT d_at timestamptz[])
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  h everstate.batches;
  keys bigint[];      -- entity key of each member
  prevs bigint[];     -- position of the entity's newest event before this batch
  firsts bigint[];    -- ordinals in this batch of the member's first and last event
  lasts bigint[];
  counts int[];
  ids text[] := a_id; -- expanded on assignment: subscripts take constant time
  known int[];        -- by append: -1 or 4 where a receipt was found
  total bigint;
  new_keys bigint;
  new_bytes bigint;
  suspects bigint;
  written bigint;
  i int;
  r record;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'append needs READ COMMITTED, not %', current_setting('transaction_isolation')
      USING ERRCODE = 'EV001';
  END IF;
  IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;
  IF abs(extract(epoch FROM statement_timestamp() - p_now)) > p_max_skew_s THEN
    RAISE EXCEPTION 'the clocks of node and database differ by % s, the limit is % s',
      round(abs(extract(epoch FROM statement_timestamp() - p_now)), 1), p_max_skew_s
      USING ERRCODE = 'EV002';
  END IF;
  SELECT array_agg(x.lo ORDER BY x.g), array_agg(x.hi ORDER BY x.g),
         array_agg(CASE WHEN x.i_lo = 1 AND x.i_hi = x.n THEN x.n END ORDER BY x.g)
    INTO firsts, lasts, counts
    FROM (SELECT e.g, min(e.ord) AS lo, max(e.ord) AS hi, count(*)::int AS n, min(e.i) AS i_lo, max(e.i) AS i_hi
          FROM unnest(e_grp, e_idx) WITH ORDINALITY e(g, i, ord) GROUP BY e.g) x;
  IF counts IS DISTINCT FROM a_n OR array_position(a_no, NULL) IS NOT NULL THEN
    RAISE EXCEPTION 'the events of a batch do not fit its members' USING ERRCODE = 'EV003';
  END IF;

  PERFORM FROM everstate.logs l WHERE l.log_id = p_log FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no log %', p_log USING ERRCODE = 'EV004';
  END IF;
  SELECT * INTO STRICT h FROM everstate.batches b
    WHERE b.log_id = p_log ORDER BY b.last_position DESC LIMIT 1;
  o_head := h.last_position;
  o_at := greatest(clock_timestamp(), h.recorded_at);  -- read after the lock: never backwards

  IF r_no IS NOT NULL THEN
    FOR r IN
      SELECT x.no, x.hash = q.content_hash AS same, q.first_position, q.last_position, q.recorded_at
      FROM unnest(r_no, r_id, r_day, r_hash) x(no, id, day, hash)
      JOIN LATERAL (SELECT y.* FROM everstate.append_results y
        WHERE y.log_id = p_log AND y.append_id = x.id AND y.day = x.day LIMIT 1) q ON true
    LOOP
      known := coalesce(known, array_fill(0, ARRAY[a_no[cardinality(a_no)]]));
      IF r.same THEN
        known[r.no] := -1;
        d_no := d_no || r.no; d_first := d_first || r.first_position;
        d_last := d_last || r.last_position; d_at := d_at || r.recorded_at;
      ELSE
        known[r.no] := 4;
      END IF;
    END LOOP;
  END IF;

  WITH j AS (
    SELECT g.*, e.entity_key AS k, coalesce(e.last_seq, 0) AS cur, e.last_position AS prev,
      CASE WHEN known[g.no] <> 0 THEN known[g.no]
           WHEN e.state <> 0 THEN 3
           WHEN g.mode >= 0 AND coalesce(e.last_seq, 0) <> g.mode THEN 1
           WHEN g.mode = -2 AND e.entity_key IS NULL THEN 2
           WHEN g.start > 0 AND e.last_seq + 1 <> g.start THEN 1
           ELSE 0 END AS v
    FROM unnest(a_no, a_type, a_id, a_mode, a_start, a_n, a_bytes)
      WITH ORDINALITY g(no, type, id, mode, start, n, bytes, ord)
    LEFT JOIN LATERAL (
      SELECT x.entity_key, x.last_seq, x.last_position, x.state FROM everstate.entities x
      WHERE x.log_id = p_log AND x.type_id = g.type AND x.entity_id = g.id LIMIT 1) e ON true
  ), m AS (                                              -- all or nothing per append
    SELECT j.*, max(j.v) OVER (PARTITION BY j.no) AS mv FROM j
  ), p AS (
    SELECT m.*,
      coalesce(sum(m.n) FILTER (WHERE m.mv <> 0) OVER w, 0) AS shift,
      coalesce(m.k, h.last_entity_key + count(*) FILTER (WHERE m.mv = 0 AND m.k IS NULL) OVER w) AS key
    FROM m WINDOW w AS (ORDER BY m.ord)
  )
  SELECT array_agg(p.key ORDER BY p.ord), array_agg(p.prev ORDER BY p.ord),
         array_agg(CASE WHEN p.k IS NULL AND p.mv = 0 AND p.start > 0 THEN p.start - 1 ELSE p.cur END ORDER BY p.ord),
         array_agg(CASE WHEN p.v = 0 AND p.mv <> 0 THEN 9 ELSE p.v END ORDER BY p.ord),
         array_agg(p.shift ORDER BY p.ord),
         coalesce(sum(p.n) FILTER (WHERE p.mv = 0), 0), coalesce(sum(p.bytes) FILTER (WHERE p.mv = 0), 0),
         count(*) FILTER (WHERE p.mv = 0 AND p.k IS NULL), count(*) FILTER (WHERE p.v = 1)
    INTO keys, prevs, o_sequences, o_verdicts, o_shifts, total, new_bytes, new_keys, suspects FROM p;

  IF suspects > 0 THEN  -- rare: is a refused append one that was written before?
    FOR r IN
      SELECT c.no, min(s.position) AS lo, max(s.position) AS hi, max(s.recorded_at) AS at
      FROM (SELECT a.*, coalesce(nullif(a.start, 0) - 1, a.mode) AS base,
                   bool_and(a.v = 1) OVER (PARTITION BY a.no) AS whole
            FROM unnest(a_no, a_type, a_id, a_mode, a_start, o_verdicts)
              WITH ORDINALITY a(no, type, id, mode, start, v, ord)) c
      JOIN unnest(e_grp, e_idx, e_id) e(g, i, id) ON e.g = c.ord
      LEFT JOIN LATERAL (
        SELECT x.entity_key, x.first_position, x.last_position FROM everstate.entities x
        WHERE x.log_id = p_log AND x.type_id = c.type AND x.entity_id = c.id LIMIT 1) n ON true
      LEFT JOIN LATERAL (
        SELECT x.position, x.recorded_at FROM everstate.events x
        WHERE x.log_id = p_log AND x.entity_key = n.entity_key AND x.seq = c.base + e.i AND x.event_id = e.id
          AND x.position BETWEEN n.first_position AND n.last_position LIMIT 1) s ON true
      WHERE c.whole GROUP BY c.no HAVING bool_and(s.position IS NOT NULL)
    LOOP
      d_no := d_no || r.no; d_first := d_first || r.lo; d_last := d_last || r.hi; d_at := d_at || r.at;
      i := array_position(a_no, r.no);
      WHILE a_no[i] = r.no LOOP
        o_verdicts[i] := -1;
        o_sequences[i] := coalesce(nullif(a_start[i], 0) - 1, a_mode[i]);
        i := i + 1;
      END LOOP;
    END LOOP;
  END IF;
  IF -1 = ANY (known) THEN
    FOR r IN
      SELECT a.ord, q.first_sequences[row_number() OVER (PARTITION BY a.no ORDER BY a.ord)] AS first
      FROM unnest(a_no) WITH ORDINALITY a(no, ord)
      JOIN unnest(r_no, r_id, r_day) x(no, id, day) ON x.no = a.no AND known[a.no] = -1
      JOIN LATERAL (SELECT y.first_sequences FROM everstate.append_results y
        WHERE y.log_id = p_log AND y.append_id = x.id AND y.day = x.day LIMIT 1) q ON true
    LOOP
      o_sequences[r.ord] := r.first - 1;
    END LOOP;
  END IF;

  IF total > 0 THEN
    INSERT INTO everstate.entities
        (entity_key, last_seq, event_count, first_position, last_position, log_id, type_id, slice, entity_id)
      SELECT g.key, g.seq + g.n, g.n, o_head + g.lo - g.shift, o_head + g.hi - g.shift, p_log, g.type, g.slice, g.id
      FROM unnest(keys, o_sequences, o_verdicts, o_shifts, firsts, lasts, a_type, a_slice, a_id, a_n)
        g(key, seq, v, shift, lo, hi, type, slice, id, n)
      WHERE g.v = 0
      ON CONFLICT (log_id, type_id, entity_id) DO UPDATE SET last_seq = excluded.last_seq,
        event_count = entities.event_count + excluded.event_count, last_position = excluded.last_position;
    INSERT INTO everstate.events
        (position, entity_key, seq, recorded_at, prev_position, event_id, log_id, type_id, entity_type_id,
         slice, flags, entity_id, payload, metadata)
      SELECT o_head + e.ord - o_shifts[e.g], keys[e.g], o_sequences[e.g] + e.i, o_at,
        CASE WHEN e.back > 0 THEN o_head + e.ord - o_shifts[e.g] - e.back ELSE prevs[e.g] END,
        e.id, p_log, e.type, a_type[e.g], a_slice[e.g], 0, ids[e.g], e.payload, e.meta
      FROM unnest(e_grp, e_idx, e_back, e_id, e_type, e_payload, e_meta)
        WITH ORDINALITY e(g, i, back, id, type, payload, meta, ord)
      WHERE o_verdicts[e.g] = 0;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written <> total THEN
      RAISE EXCEPTION 'wrote % events of %', written, total USING ERRCODE = 'EV003';
    END IF;
    INSERT INTO everstate.batches
        (log_id, last_position, first_position, recorded_at, last_entity_key, bytes_total, node)
      VALUES (p_log, o_head + total, o_head + 1, o_at, h.last_entity_key + new_keys, h.bytes_total + new_bytes, p_node);
    IF s_grp IS NOT NULL THEN
      INSERT INTO everstate.snapshots (entity_key, seq, recorded_at, log_id, type, content_type, payload)
        SELECT keys[s.g], o_sequences[s.g] + a_n[s.g], o_at, p_log, s.type, s.content_type, s.payload
        FROM unnest(s_grp, s_type, s_content_type, s_payload) s(g, type, content_type, payload)
        WHERE o_verdicts[s.g] = 0;
    END IF;
    IF r_no IS NOT NULL THEN
      INSERT INTO everstate.append_results
          (append_id, day, log_id, recorded_at, first_position, last_position, content_hash, first_sequences)
        SELECT x.id, x.day, p_log, o_at, m.lo, m.hi, x.hash, m.sequences
        FROM unnest(r_no, r_id, r_day, r_hash) x(no, id, day, hash)
        JOIN (SELECT a.no, min(o_head + a.lo - a.shift) AS lo, max(o_head + a.hi - a.shift) AS hi,
                     array_agg(a.seq + 1 ORDER BY a.ord) AS sequences
              FROM unnest(a_no, o_sequences, o_verdicts, o_shifts, firsts, lasts)
                WITH ORDINALITY a(no, seq, v, shift, lo, hi, ord)
              WHERE a.v = 0 GROUP BY a.no) m ON m.no = x.no;
    END IF;
  END IF;
END $$;

-- == 0001: 0001_logs

-- The users' log, and Everstate's own (audit); nothing but users' appends enters `default`.
SELECT everstate.create_log_v1('default', 4194304);
SELECT everstate.create_log_v1('_system', 4194304);

-- == 0002: 0002_processes

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

-- == 0002: 0002_tokens

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

-- == 0002: 0002_projections

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

-- == 0002: create_confined_role_v1

-- Makes a role that can log in nowhere and lets the connection become it. It may be there already:
-- roles are the cluster's, and a database of the same name may have been dropped without it.
CREATE FUNCTION everstate.create_confined_role_v1(p_role text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = p_role) THEN
    EXECUTE format('CREATE ROLE %I NOLOGIN', p_role);
  END IF;
  -- Since PostgreSQL 16, whoever makes a role may administer it, but not become it.
  IF current_setting('server_version_num')::int >= 160000 THEN
    IF NOT pg_catalog.pg_has_role(current_user, p_role, 'SET') THEN
      EXECUTE format('GRANT %I TO %I WITH SET TRUE, INHERIT FALSE', p_role, current_user);
    END IF;
  ELSIF NOT pg_catalog.pg_has_role(current_user, p_role, 'MEMBER') THEN
    EXECUTE format('GRANT %I TO %I', p_role, current_user);
  END IF;
END $$;

-- == 0002: create_read_model_v1

-- Makes the empty schema of a build of a projection and the role that may write in it and nowhere
-- else, and the schema of the views with the role of their readers. The tables are then made by the
-- role p_role.
CREATE FUNCTION everstate.create_read_model_v1(
  p_schema text, p_role text, p_views text, p_reader text
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM everstate.create_confined_role_v1(p_role);
  PERFORM everstate.create_confined_role_v1(p_reader);
  EXECUTE format('CREATE SCHEMA %I', p_schema);
  EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO %I', p_schema, p_role);
  EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I', p_views);
  EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', p_views, p_reader);
END $$;

-- == 0002: publish_read_model_v1

-- Makes the views in p_views show the tables (and views) of p_schema, and takes away those that have
-- no table any more. A view that can be replaced keeps its grants and what hangs on it; one whose
-- columns changed is made anew with the same grants, which fails when something hangs on it.
-- p_role owns the tables; the views belong to the connection's role, which gets the right to read.
CREATE FUNCTION everstate.publish_read_model_v1(
  p_schema text, p_role text, p_views text, p_reader text
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  t record;
  g record;
  grants text[];
  definition text;
  owner text := current_user;
  former text := current_setting('role');
BEGIN
  PERFORM set_config('role', p_role, true);
  EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %I', p_schema, owner);
  PERFORM set_config('role', former, true);
  FOR t IN
    SELECT c.relname FROM pg_catalog.pg_class c
    WHERE c.relnamespace = p_views::regnamespace AND c.relkind = 'v' AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_class o WHERE o.relnamespace = p_schema::regnamespace
        AND o.relname = c.relname AND o.relkind IN ('r', 'p', 'v', 'm'))
  LOOP
    EXECUTE format('DROP VIEW %I.%I', p_views, t.relname);
  END LOOP;
  FOR t IN
    SELECT c.relname FROM pg_catalog.pg_class c
    WHERE c.relnamespace = p_schema::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
      AND NOT c.relispartition
    ORDER BY c.relname
  LOOP
    definition := format('VIEW %I.%I AS SELECT * FROM %I.%I', p_views, t.relname, p_schema, t.relname);
    BEGIN
      EXECUTE 'CREATE OR REPLACE ' || definition;
    EXCEPTION WHEN invalid_table_definition OR wrong_object_type THEN
      SELECT array_agg(format('GRANT %s ON %I.%I TO %s', a.privilege_type, p_views, t.relname,
          CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END))
        INTO grants
        FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
        WHERE c.oid = to_regclass(format('%I.%I', p_views, t.relname));
      EXECUTE format('DROP VIEW %I.%I', p_views, t.relname);
      EXECUTE 'CREATE ' || definition;
      FOR g IN SELECT unnest(grants) AS statement LOOP
        EXECUTE g.statement;
      END LOOP;
    END;
    EXECUTE format('GRANT SELECT ON %I.%I TO %I', p_views, t.relname, p_reader);
  END LOOP;
END $$;

-- == 0002: drop_read_model_v1

-- Removes the schema of a build of a projection with all that is in it, and its role.
CREATE FUNCTION everstate.drop_read_model_v1(p_schema text, p_role text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', p_schema);
  EXECUTE format('DROP ROLE IF EXISTS %I', p_role);
END $$;

-- == 0002: 0002_replays

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

-- == 0002: grant_read_model_v1

-- Lets the connection's role read the tables of a version, which belong to the version's role p_role.
CREATE FUNCTION everstate.grant_read_model_v1(p_schema text, p_role text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  owner text := current_user;
  former text := current_setting('role');
BEGIN
  PERFORM set_config('role', p_role, true);
  EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %I', p_schema, owner);
  PERFORM set_config('role', former, true);
END $$;

-- == 0002: digest_read_model_v1

-- The number of rows of a table and a checksum over p_columns, whatever the order of the rows.
CREATE FUNCTION everstate.digest_read_model_v1(
  p_schema text, p_table text, p_columns text[], OUT row_count bigint, OUT checksum numeric
)
LANGUAGE plpgsql STABLE AS $$
BEGIN
  EXECUTE format(
    'SELECT count(*), coalesce(sum(hashtextextended(ROW(%s)::text, 0)), 0) FROM %I.%I',
    (SELECT string_agg(format('%I', c), ', ' ORDER BY n) FROM unnest(p_columns) WITH ORDINALITY AS u (c, n)),
    p_schema, p_table
  ) INTO row_count, checksum;
END $$;

-- == 0002: differ_read_models_v1

-- Rows (of p_columns) that a table of p_old has and p_new has not, and the other way round; p_limit of
-- each at most. A row that is there twice in one and once in the other counts.
CREATE FUNCTION everstate.differ_read_models_v1(
  p_old text, p_new text, p_table text, p_columns text[], p_limit int
) RETURNS TABLE (side text, content jsonb)
LANGUAGE plpgsql STABLE AS $$
DECLARE
  columns text := (
    SELECT string_agg(format('%I', c), ', ' ORDER BY n)
    FROM unnest(p_columns) WITH ORDINALITY AS u (c, n)
  );
BEGIN
  FOR side, p_old, p_new IN VALUES ('old', p_old, p_new), ('new', p_new, p_old) LOOP
    RETURN QUERY EXECUTE format(
      'SELECT %L::text, d.content::jsonb FROM ('
      'SELECT to_jsonb(a)::text AS content FROM (SELECT %s FROM %I.%I) a EXCEPT ALL '
      'SELECT to_jsonb(b)::text FROM (SELECT %s FROM %I.%I) b LIMIT %s) d',
      side, columns, p_old, p_table, columns, p_new, p_table, p_limit);
  END LOOP;
END $$;

-- == 0002: 0002_groups

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

-- == 0002: 0002_descriptors

-- Registered protobuf descriptors: schemas/.

-- Every change of the registry; readers compare its newest version with theirs.
CREATE TABLE everstate.descriptor_versions (
  version  bigint PRIMARY KEY,
  added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  digest   bytea NOT NULL,                     -- SHA-256 of the set as it was given
  files    text[] NOT NULL,                    -- those that changed
  breaking text[] NOT NULL                     -- incompatible changes that were allowed
);

-- The files as they are now, without comments. Those of protobuf itself are never stored.
CREATE TABLE everstate.descriptor_files (
  name    text COLLATE "C" PRIMARY KEY,
  version bigint NOT NULL REFERENCES everstate.descriptor_versions,
  imports text[] COLLATE "C" NOT NULL,
  content bytea NOT NULL                       -- a FileDescriptorProto
);

-- The messages that they define: full name, and how many fields.
CREATE TABLE everstate.descriptor_types (
  name   text COLLATE "C" PRIMARY KEY,
  file   text COLLATE "C" NOT NULL REFERENCES everstate.descriptor_files,
  fields int NOT NULL
);
CREATE INDEX descriptor_types_file ON everstate.descriptor_types (file);

-- == 0002: append_batch_v2

-- Appends a batch: many independent appends, each to one or several entities, in one commit.
--
-- The log's row is locked by a statement of its own, so that every later statement sees all earlier
-- commits (READ COMMITTED, VOLATILE; one statement that locks and judges has a snapshot from before
-- the wait). Positions are handed out under that lock: commit order = position order, and a rollback
-- takes them back. Heads are probed by LATERAL … LIMIT 1 under a generic plan: a plain join becomes
-- a scan of all heads as soon as statistics are fresh (ADR 0002). Sequential scans are off: a plan made
-- and kept while the tables are small would scan them when they have grown.
--
-- Parameters. Members (one an entity of an append; members of an append stand together):
--   a_no      number of the append, 1.. without gaps      a_type, a_id  the entity
--   a_mode    >= 0 exact sequence, -1 any, -2 exists      a_start  its first sequence number, 0: none;
--   null array: none for all
--   a_n       its events in this append                  a_bytes  their payload and metadata bytes
-- Events, in log order: e_grp index of the member, e_idx 1..n within the member, e_back distance to
--   the member's event before within the batch (0: it is in the log, or nowhere; null array: all 0);
--   e_meta null array: none has metadata.
-- Appends with an id (null arrays: none): r_no, r_id, r_day, r_hash.
-- Snapshots (null arrays: none): s_grp index of the member.
-- p_now is the node's clock when it sent the batch.
--
-- Result, one row: the head before; the time; per member: verdict (0 written, -1 written before,
-- 1 wrong sequence, 2 does not exist, 3 deleted, 4 append id used for another content, 9 refused
-- because of another member), sequence before (written) or found (refused), events refused before
-- it in this batch, position of the entity's newest event before the batch (null: none);
-- duplicates: append number, first and last position, time.
--
-- A refused append never spoils its neighbours; position = head + event's ordinal − events refused
-- before it, so there cannot be a hole.
CREATE FUNCTION everstate.append_batch_v2(
  p_log int, p_now timestamptz, p_max_skew_s float8, p_node text,
  a_no int[], a_type int[], a_id text[], a_slice smallint[], a_mode bigint[], a_start bigint[],
  a_n int[], a_bytes bigint[],
  e_grp int[], e_idx int[], e_back int[], e_id uuid[], e_type int[], e_payload bytea[], e_meta jsonb[],
  r_no int[], r_id uuid[], r_day date[], r_hash bytea[],
  s_grp int[], s_type text[], s_content_type text[], s_payload bytea[],
  OUT o_head bigint, OUT o_at timestamptz, OUT o_verdicts int[], OUT o_sequences bigint[],
  OUT o_shifts bigint[], OUT o_prevs bigint[], OUT d_no int[], OUT d_first bigint[], OUT d_last bigint[],
  OUT d_at timestamptz[])
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  h everstate.batches;
  keys bigint[];      -- entity key of each member
  firsts bigint[];    -- ordinals in this batch of the member's first and last event
  lasts bigint[];
  counts int[];
  ids text[] := a_id; -- expanded on assignment: subscripts take constant time
  known int[];        -- by append: -1 or 4 where a receipt was found
  total bigint;
  new_keys bigint;
  new_bytes bigint;
  suspects bigint;
  written bigint;
  i int;
  r record;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'append needs READ COMMITTED, not %', current_setting('transaction_isolation')
      USING ERRCODE = 'EV001';
  END IF;
  IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;
  IF abs(extract(epoch FROM statement_timestamp() - p_now)) > p_max_skew_s THEN
    RAISE EXCEPTION 'the clocks of node and database differ by % s, the limit is % s',
      round(abs(extract(epoch FROM statement_timestamp() - p_now)), 1), p_max_skew_s
      USING ERRCODE = 'EV002';
  END IF;
  SELECT array_agg(x.lo ORDER BY x.g), array_agg(x.hi ORDER BY x.g),
         array_agg(CASE WHEN x.i_lo = 1 AND x.i_hi = x.n THEN x.n END ORDER BY x.g)
    INTO firsts, lasts, counts
    FROM (SELECT e.g, min(e.ord) AS lo, max(e.ord) AS hi, count(*)::int AS n, min(e.i) AS i_lo, max(e.i) AS i_hi
          FROM unnest(e_grp, e_idx) WITH ORDINALITY e(g, i, ord) GROUP BY e.g) x;
  IF counts IS DISTINCT FROM a_n OR array_position(a_no, NULL) IS NOT NULL THEN
    RAISE EXCEPTION 'the events of a batch do not fit its members' USING ERRCODE = 'EV003';
  END IF;

  PERFORM FROM everstate.logs l WHERE l.log_id = p_log FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no log %', p_log USING ERRCODE = 'EV004';
  END IF;
  SELECT * INTO STRICT h FROM everstate.batches b
    WHERE b.log_id = p_log ORDER BY b.last_position DESC LIMIT 1;
  o_head := h.last_position;
  o_at := greatest(clock_timestamp(), h.recorded_at);  -- read after the lock: never backwards

  IF r_no IS NOT NULL THEN
    FOR r IN
      SELECT x.no, x.hash = q.content_hash AS same, q.first_position, q.last_position, q.recorded_at
      FROM unnest(r_no, r_id, r_day, r_hash) x(no, id, day, hash)
      JOIN LATERAL (SELECT y.* FROM everstate.append_results y
        WHERE y.log_id = p_log AND y.append_id = x.id AND y.day = x.day LIMIT 1) q ON true
    LOOP
      known := coalesce(known, array_fill(0, ARRAY[a_no[cardinality(a_no)]]));
      IF r.same THEN
        known[r.no] := -1;
        d_no := d_no || r.no; d_first := d_first || r.first_position;
        d_last := d_last || r.last_position; d_at := d_at || r.recorded_at;
      ELSE
        known[r.no] := 4;
      END IF;
    END LOOP;
  END IF;

  WITH j AS (
    SELECT g.*, e.entity_key AS k, coalesce(e.last_seq, 0) AS cur, e.last_position AS prev,
      CASE WHEN known[g.no] <> 0 THEN known[g.no]
           WHEN e.state <> 0 THEN 3
           WHEN g.mode >= 0 AND coalesce(e.last_seq, 0) <> g.mode THEN 1
           WHEN g.mode = -2 AND e.entity_key IS NULL THEN 2
           WHEN g.start > 0 AND e.last_seq + 1 <> g.start THEN 1
           ELSE 0 END AS v
    FROM unnest(a_no, a_type, a_id, a_mode, a_start, a_n, a_bytes)
      WITH ORDINALITY g(no, type, id, mode, start, n, bytes, ord)
    LEFT JOIN LATERAL (
      SELECT x.entity_key, x.last_seq, x.last_position, x.state FROM everstate.entities x
      WHERE x.log_id = p_log AND x.type_id = g.type AND x.entity_id = g.id LIMIT 1) e ON true
  ), m AS (                                              -- all or nothing per append
    SELECT j.*, max(j.v) OVER (PARTITION BY j.no) AS mv FROM j
  ), p AS (
    SELECT m.*,
      coalesce(sum(m.n) FILTER (WHERE m.mv <> 0) OVER w, 0) AS shift,
      coalesce(m.k, h.last_entity_key + count(*) FILTER (WHERE m.mv = 0 AND m.k IS NULL) OVER w) AS key
    FROM m WINDOW w AS (ORDER BY m.ord)
  )
  SELECT array_agg(p.key ORDER BY p.ord), array_agg(p.prev ORDER BY p.ord),
         array_agg(CASE WHEN p.k IS NULL AND p.mv = 0 AND p.start > 0 THEN p.start - 1 ELSE p.cur END ORDER BY p.ord),
         array_agg(CASE WHEN p.v = 0 AND p.mv <> 0 THEN 9 ELSE p.v END ORDER BY p.ord),
         array_agg(p.shift ORDER BY p.ord),
         coalesce(sum(p.n) FILTER (WHERE p.mv = 0), 0), coalesce(sum(p.bytes) FILTER (WHERE p.mv = 0), 0),
         count(*) FILTER (WHERE p.mv = 0 AND p.k IS NULL), count(*) FILTER (WHERE p.v = 1)
    INTO keys, o_prevs, o_sequences, o_verdicts, o_shifts, total, new_bytes, new_keys, suspects FROM p;

  IF suspects > 0 THEN  -- rare: is a refused append one that was written before?
    FOR r IN
      SELECT c.no, min(s.position) AS lo, max(s.position) AS hi, max(s.recorded_at) AS at
      FROM (SELECT a.*, coalesce(nullif(a.start, 0) - 1, a.mode) AS base,
                   bool_and(a.v = 1) OVER (PARTITION BY a.no) AS whole
            FROM unnest(a_no, a_type, a_id, a_mode, a_start, o_verdicts)
              WITH ORDINALITY a(no, type, id, mode, start, v, ord)) c
      JOIN unnest(e_grp, e_idx, e_id) e(g, i, id) ON e.g = c.ord
      LEFT JOIN LATERAL (
        SELECT x.entity_key, x.first_position, x.last_position FROM everstate.entities x
        WHERE x.log_id = p_log AND x.type_id = c.type AND x.entity_id = c.id LIMIT 1) n ON true
      LEFT JOIN LATERAL (
        SELECT x.position, x.recorded_at FROM everstate.events x
        WHERE x.log_id = p_log AND x.entity_key = n.entity_key AND x.seq = c.base + e.i AND x.event_id = e.id
          AND x.position BETWEEN n.first_position AND n.last_position LIMIT 1) s ON true
      WHERE c.whole GROUP BY c.no HAVING bool_and(s.position IS NOT NULL)
    LOOP
      d_no := d_no || r.no; d_first := d_first || r.lo; d_last := d_last || r.hi; d_at := d_at || r.at;
      i := array_position(a_no, r.no);
      WHILE a_no[i] = r.no LOOP
        o_verdicts[i] := -1;
        o_sequences[i] := coalesce(nullif(a_start[i], 0) - 1, a_mode[i]);
        i := i + 1;
      END LOOP;
    END LOOP;
  END IF;
  IF -1 = ANY (known) THEN
    FOR r IN
      SELECT a.ord, q.first_sequences[row_number() OVER (PARTITION BY a.no ORDER BY a.ord)] AS first
      FROM unnest(a_no) WITH ORDINALITY a(no, ord)
      JOIN unnest(r_no, r_id, r_day) x(no, id, day) ON x.no = a.no AND known[a.no] = -1
      JOIN LATERAL (SELECT y.first_sequences FROM everstate.append_results y
        WHERE y.log_id = p_log AND y.append_id = x.id AND y.day = x.day LIMIT 1) q ON true
    LOOP
      o_sequences[r.ord] := r.first - 1;
    END LOOP;
  END IF;

  IF total > 0 THEN
    INSERT INTO everstate.entities
        (entity_key, last_seq, event_count, first_position, last_position, log_id, type_id, slice, entity_id)
      SELECT g.key, g.seq + g.n, g.n, o_head + g.lo - g.shift, o_head + g.hi - g.shift, p_log, g.type, g.slice, g.id
      FROM unnest(keys, o_sequences, o_verdicts, o_shifts, firsts, lasts, a_type, a_slice, a_id, a_n)
        g(key, seq, v, shift, lo, hi, type, slice, id, n)
      WHERE g.v = 0
      ON CONFLICT (log_id, type_id, entity_id) DO UPDATE SET last_seq = excluded.last_seq,
        event_count = entities.event_count + excluded.event_count, last_position = excluded.last_position;
    INSERT INTO everstate.events
        (position, entity_key, seq, recorded_at, prev_position, event_id, log_id, type_id, entity_type_id,
         slice, flags, entity_id, payload, metadata)
      SELECT o_head + e.ord - o_shifts[e.g], keys[e.g], o_sequences[e.g] + e.i, o_at,
        CASE WHEN e.back > 0 THEN o_head + e.ord - o_shifts[e.g] - e.back ELSE o_prevs[e.g] END,
        e.id, p_log, e.type, a_type[e.g], a_slice[e.g], 0, ids[e.g], e.payload, e.meta
      FROM unnest(e_grp, e_idx, e_back, e_id, e_type, e_payload, e_meta)
        WITH ORDINALITY e(g, i, back, id, type, payload, meta, ord)
      WHERE o_verdicts[e.g] = 0;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written <> total THEN
      RAISE EXCEPTION 'wrote % events of %', written, total USING ERRCODE = 'EV003';
    END IF;
    INSERT INTO everstate.batches
        (log_id, last_position, first_position, recorded_at, last_entity_key, bytes_total, node)
      VALUES (p_log, o_head + total, o_head + 1, o_at, h.last_entity_key + new_keys, h.bytes_total + new_bytes, p_node);
    IF s_grp IS NOT NULL THEN
      INSERT INTO everstate.snapshots (entity_key, seq, recorded_at, log_id, type, content_type, payload)
        SELECT keys[s.g], o_sequences[s.g] + a_n[s.g], o_at, p_log, s.type, s.content_type, s.payload
        FROM unnest(s_grp, s_type, s_content_type, s_payload) s(g, type, content_type, payload)
        WHERE o_verdicts[s.g] = 0;
    END IF;
    IF r_no IS NOT NULL THEN
      INSERT INTO everstate.append_results
          (append_id, day, log_id, recorded_at, first_position, last_position, content_hash, first_sequences)
        SELECT x.id, x.day, p_log, o_at, m.lo, m.hi, x.hash, m.sequences
        FROM unnest(r_no, r_id, r_day, r_hash) x(no, id, day, hash)
        JOIN (SELECT a.no, min(o_head + a.lo - a.shift) AS lo, max(o_head + a.hi - a.shift) AS hi,
                     array_agg(a.seq + 1 ORDER BY a.ord) AS sequences
              FROM unnest(a_no, o_sequences, o_verdicts, o_shifts, firsts, lasts)
                WITH ORDINALITY a(no, seq, v, shift, lo, hi, ord)
              WHERE a.v = 0 GROUP BY a.no) m ON m.no = x.no;
    END IF;
  END IF;
END $$;

-- == 0003: 0003_snapshots

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

-- == 0003: event_time_v1

-- When an event happened: the time that its writer gave (microseconds since the Unix epoch, under
-- "$time" of the stored metadata), else when it was recorded. Times before the year 1 are its begin.
-- One expression without settings of its own, so that the planner puts it in the place of the call.
CREATE FUNCTION everstate.event_time_v1(p_metadata jsonb, p_recorded_at timestamptz)
RETURNS timestamptz LANGUAGE sql STABLE AS $$
  -- Seconds and the rest apart: their product with an interval goes through a float8.
  SELECT CASE WHEN p_metadata ? '$time' THEN
    to_timestamp(0) + (greatest((p_metadata ->> '$time')::bigint, -62135596800000000) / 1000000) * interval '1 second'
      + (greatest((p_metadata ->> '$time')::bigint, -62135596800000000) % 1000000) * interval '1 microsecond'
    ELSE p_recorded_at END
$$;

-- == 0003: snapshot_is_usable_v1

-- Whether loads of entities of a type use snapshots of a type of snapshots, by the settings of the
-- entity type (snapshots/model.py). Removed snapshots are nobody's; that is not asked here.
-- One expression without settings of its own, so that the planner puts it in the place of the call.
CREATE FUNCTION everstate.snapshot_is_usable_v1(p_settings jsonb, p_type text)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT p_settings = '{}'
    OR NOT coalesce((p_settings ->> 'needs_full_replay')::boolean, false)
      AND (coalesce(p_settings -> 'snapshot_types', '[]') = '[]' OR p_settings -> 'snapshot_types' ? p_type)
$$;

-- == 0003: append_batch_v3

-- Appends a batch: many independent appends, each to one or several entities, in one commit.
--
-- The log's row is locked by a statement of its own, so that every later statement sees all earlier
-- commits (READ COMMITTED, VOLATILE; one statement that locks and judges has a snapshot from before
-- the wait). Positions are handed out under that lock: commit order = position order, and a rollback
-- takes them back. Heads are probed by LATERAL … LIMIT 1 under a generic plan: a plain join becomes
-- a scan of all heads as soon as statistics are fresh (ADR 0002). Sequential scans are off: a plan made
-- and kept while the tables are small would scan them when they have grown.
--
-- Parameters. Members (one an entity of an append; members of an append stand together):
--   a_no      number of the append, 1.. without gaps      a_type, a_id  the entity
--   a_mode    >= 0 exact sequence, -1 any, -2 exists      a_start  its first sequence number, 0: none;
--   null array: none for all
--   a_n       its events in this append                  a_bytes  their payload and metadata bytes
-- Events, in log order: e_grp index of the member, e_idx 1..n within the member, e_back distance to
--   the member's event before within the batch (0: it is in the log, or nowhere; null array: all 0);
--   e_meta null array: none has metadata.
-- Appends with an id (null arrays: none): r_no, r_id, r_day, r_hash.
-- Snapshots (null arrays: none): s_grp index of the member. Each is kept with the position and the
--   time (event_time_v1) of the newest event of its member, which is the newest that it covers.
-- p_now is the node's clock when it sent the batch.
--
-- Result, one row: the head before; the time; per member: verdict (0 written, -1 written before,
-- 1 wrong sequence, 2 does not exist, 3 deleted, 4 append id used for another content, 9 refused
-- because of another member), sequence before (written) or found (refused), events refused before
-- it in this batch, position of the entity's newest event before the batch (null: none);
-- duplicates: append number, first and last position, time.
--
-- A refused append never spoils its neighbours; position = head + event's ordinal − events refused
-- before it, so there cannot be a hole.
CREATE FUNCTION everstate.append_batch_v3(
  p_log int, p_now timestamptz, p_max_skew_s float8, p_node text,
  a_no int[], a_type int[], a_id text[], a_slice smallint[], a_mode bigint[], a_start bigint[],
  a_n int[], a_bytes bigint[],
  e_grp int[], e_idx int[], e_back int[], e_id uuid[], e_type int[], e_payload bytea[], e_meta jsonb[],
  r_no int[], r_id uuid[], r_day date[], r_hash bytea[],
  s_grp int[], s_type text[], s_content_type text[], s_payload bytea[],
  OUT o_head bigint, OUT o_at timestamptz, OUT o_verdicts int[], OUT o_sequences bigint[],
  OUT o_shifts bigint[], OUT o_prevs bigint[], OUT d_no int[], OUT d_first bigint[], OUT d_last bigint[],
  OUT d_at timestamptz[])
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  h everstate.batches;
  keys bigint[];      -- entity key of each member
  firsts bigint[];    -- ordinals in this batch of the member's first and last event
  lasts bigint[];
  counts int[];
  ids text[] := a_id; -- expanded on assignment: subscripts take constant time
  metas jsonb[];      -- e_meta likewise, where there are snapshots
  known int[];        -- by append: -1 or 4 where a receipt was found
  total bigint;
  new_keys bigint;
  new_bytes bigint;
  suspects bigint;
  written bigint;
  i int;
  r record;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'append needs READ COMMITTED, not %', current_setting('transaction_isolation')
      USING ERRCODE = 'EV001';
  END IF;
  IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;
  IF abs(extract(epoch FROM statement_timestamp() - p_now)) > p_max_skew_s THEN
    RAISE EXCEPTION 'the clocks of node and database differ by % s, the limit is % s',
      round(abs(extract(epoch FROM statement_timestamp() - p_now)), 1), p_max_skew_s
      USING ERRCODE = 'EV002';
  END IF;
  SELECT array_agg(x.lo ORDER BY x.g), array_agg(x.hi ORDER BY x.g),
         array_agg(CASE WHEN x.i_lo = 1 AND x.i_hi = x.n THEN x.n END ORDER BY x.g)
    INTO firsts, lasts, counts
    FROM (SELECT e.g, min(e.ord) AS lo, max(e.ord) AS hi, count(*)::int AS n, min(e.i) AS i_lo, max(e.i) AS i_hi
          FROM unnest(e_grp, e_idx) WITH ORDINALITY e(g, i, ord) GROUP BY e.g) x;
  IF counts IS DISTINCT FROM a_n OR array_position(a_no, NULL) IS NOT NULL THEN
    RAISE EXCEPTION 'the events of a batch do not fit its members' USING ERRCODE = 'EV003';
  END IF;

  PERFORM FROM everstate.logs l WHERE l.log_id = p_log FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no log %', p_log USING ERRCODE = 'EV004';
  END IF;
  SELECT * INTO STRICT h FROM everstate.batches b
    WHERE b.log_id = p_log ORDER BY b.last_position DESC LIMIT 1;
  o_head := h.last_position;
  o_at := greatest(clock_timestamp(), h.recorded_at);  -- read after the lock: never backwards

  IF r_no IS NOT NULL THEN
    FOR r IN
      SELECT x.no, x.hash = q.content_hash AS same, q.first_position, q.last_position, q.recorded_at
      FROM unnest(r_no, r_id, r_day, r_hash) x(no, id, day, hash)
      JOIN LATERAL (SELECT y.* FROM everstate.append_results y
        WHERE y.log_id = p_log AND y.append_id = x.id AND y.day = x.day LIMIT 1) q ON true
    LOOP
      known := coalesce(known, array_fill(0, ARRAY[a_no[cardinality(a_no)]]));
      IF r.same THEN
        known[r.no] := -1;
        d_no := d_no || r.no; d_first := d_first || r.first_position;
        d_last := d_last || r.last_position; d_at := d_at || r.recorded_at;
      ELSE
        known[r.no] := 4;
      END IF;
    END LOOP;
  END IF;

  WITH j AS (
    SELECT g.*, e.entity_key AS k, coalesce(e.last_seq, 0) AS cur, e.last_position AS prev,
      CASE WHEN known[g.no] <> 0 THEN known[g.no]
           WHEN e.state <> 0 THEN 3
           WHEN g.mode >= 0 AND coalesce(e.last_seq, 0) <> g.mode THEN 1
           WHEN g.mode = -2 AND e.entity_key IS NULL THEN 2
           WHEN g.start > 0 AND e.last_seq + 1 <> g.start THEN 1
           ELSE 0 END AS v
    FROM unnest(a_no, a_type, a_id, a_mode, a_start, a_n, a_bytes)
      WITH ORDINALITY g(no, type, id, mode, start, n, bytes, ord)
    LEFT JOIN LATERAL (
      SELECT x.entity_key, x.last_seq, x.last_position, x.state FROM everstate.entities x
      WHERE x.log_id = p_log AND x.type_id = g.type AND x.entity_id = g.id LIMIT 1) e ON true
  ), m AS (                                              -- all or nothing per append
    SELECT j.*, max(j.v) OVER (PARTITION BY j.no) AS mv FROM j
  ), p AS (
    SELECT m.*,
      coalesce(sum(m.n) FILTER (WHERE m.mv <> 0) OVER w, 0) AS shift,
      coalesce(m.k, h.last_entity_key + count(*) FILTER (WHERE m.mv = 0 AND m.k IS NULL) OVER w) AS key
    FROM m WINDOW w AS (ORDER BY m.ord)
  )
  SELECT array_agg(p.key ORDER BY p.ord), array_agg(p.prev ORDER BY p.ord),
         array_agg(CASE WHEN p.k IS NULL AND p.mv = 0 AND p.start > 0 THEN p.start - 1 ELSE p.cur END ORDER BY p.ord),
         array_agg(CASE WHEN p.v = 0 AND p.mv <> 0 THEN 9 ELSE p.v END ORDER BY p.ord),
         array_agg(p.shift ORDER BY p.ord),
         coalesce(sum(p.n) FILTER (WHERE p.mv = 0), 0), coalesce(sum(p.bytes) FILTER (WHERE p.mv = 0), 0),
         count(*) FILTER (WHERE p.mv = 0 AND p.k IS NULL), count(*) FILTER (WHERE p.v IN (1, 3))
    INTO keys, o_prevs, o_sequences, o_verdicts, o_shifts, total, new_bytes, new_keys, suspects FROM p;

  IF suspects > 0 THEN  -- rare: is a refused append one that was written before?
    FOR r IN
      SELECT c.no, min(s.position) AS lo, max(s.position) AS hi, max(s.recorded_at) AS at
      FROM (SELECT a.*, coalesce(nullif(a.start, 0) - 1, a.mode) AS base,
                   bool_and(a.v IN (1, 3)) OVER (PARTITION BY a.no) AS whole
            FROM unnest(a_no, a_type, a_id, a_mode, a_start, o_verdicts)
              WITH ORDINALITY a(no, type, id, mode, start, v, ord)) c
      JOIN unnest(e_grp, e_idx, e_id) e(g, i, id) ON e.g = c.ord
      LEFT JOIN LATERAL (
        SELECT x.entity_key, x.first_position, x.last_position FROM everstate.entities x
        WHERE x.log_id = p_log AND x.type_id = c.type AND x.entity_id = c.id LIMIT 1) n ON true
      LEFT JOIN LATERAL (
        SELECT x.position, x.recorded_at FROM everstate.events x
        WHERE x.log_id = p_log AND x.entity_key = n.entity_key AND x.seq = c.base + e.i AND x.event_id = e.id
          AND x.position BETWEEN n.first_position AND n.last_position LIMIT 1) s ON true
      WHERE c.whole GROUP BY c.no HAVING bool_and(s.position IS NOT NULL)
    LOOP
      d_no := d_no || r.no; d_first := d_first || r.lo; d_last := d_last || r.hi; d_at := d_at || r.at;
      i := array_position(a_no, r.no);
      WHILE a_no[i] = r.no LOOP
        o_verdicts[i] := -1;
        o_sequences[i] := coalesce(nullif(a_start[i], 0) - 1, a_mode[i]);
        i := i + 1;
      END LOOP;
    END LOOP;
  END IF;
  IF -1 = ANY (known) THEN
    FOR r IN
      SELECT a.ord, q.first_sequences[row_number() OVER (PARTITION BY a.no ORDER BY a.ord)] AS first
      FROM unnest(a_no) WITH ORDINALITY a(no, ord)
      JOIN unnest(r_no, r_id, r_day) x(no, id, day) ON x.no = a.no AND known[a.no] = -1
      JOIN LATERAL (SELECT y.first_sequences FROM everstate.append_results y
        WHERE y.log_id = p_log AND y.append_id = x.id AND y.day = x.day LIMIT 1) q ON true
    LOOP
      o_sequences[r.ord] := r.first - 1;
    END LOOP;
  END IF;

  IF total > 0 THEN
    INSERT INTO everstate.entities
        (entity_key, last_seq, event_count, first_position, last_position, log_id, type_id, slice, entity_id)
      SELECT g.key, g.seq + g.n, g.n, o_head + g.lo - g.shift, o_head + g.hi - g.shift, p_log, g.type, g.slice, g.id
      FROM unnest(keys, o_sequences, o_verdicts, o_shifts, firsts, lasts, a_type, a_slice, a_id, a_n)
        g(key, seq, v, shift, lo, hi, type, slice, id, n)
      WHERE g.v = 0
      ON CONFLICT (log_id, type_id, entity_id) DO UPDATE SET last_seq = excluded.last_seq,
        event_count = entities.event_count + excluded.event_count, last_position = excluded.last_position;
    INSERT INTO everstate.events
        (position, entity_key, seq, recorded_at, prev_position, event_id, log_id, type_id, entity_type_id,
         slice, flags, entity_id, payload, metadata)
      SELECT o_head + e.ord - o_shifts[e.g], keys[e.g], o_sequences[e.g] + e.i, o_at,
        CASE WHEN e.back > 0 THEN o_head + e.ord - o_shifts[e.g] - e.back ELSE o_prevs[e.g] END,
        e.id, p_log, e.type, a_type[e.g], a_slice[e.g], 0, ids[e.g], e.payload, e.meta
      FROM unnest(e_grp, e_idx, e_back, e_id, e_type, e_payload, e_meta)
        WITH ORDINALITY e(g, i, back, id, type, payload, meta, ord)
      WHERE o_verdicts[e.g] = 0;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written <> total THEN
      RAISE EXCEPTION 'wrote % events of %', written, total USING ERRCODE = 'EV003';
    END IF;
    INSERT INTO everstate.batches
        (log_id, last_position, first_position, recorded_at, last_entity_key, bytes_total, node)
      VALUES (p_log, o_head + total, o_head + 1, o_at, h.last_entity_key + new_keys, h.bytes_total + new_bytes, p_node);
    IF s_grp IS NOT NULL THEN
      metas := e_meta;
      INSERT INTO everstate.snapshots
          (entity_key, seq, recorded_at, log_id, type, content_type, payload, position, event_at, source)
        SELECT keys[s.g], o_sequences[s.g] + a_n[s.g], o_at, p_log, s.type, s.content_type, s.payload,
          o_head + lasts[s.g] - o_shifts[s.g], everstate.event_time_v1(metas[lasts[s.g]], o_at), 0
        FROM unnest(s_grp, s_type, s_content_type, s_payload) s(g, type, content_type, payload)
        WHERE o_verdicts[s.g] = 0;
    END IF;
    IF r_no IS NOT NULL THEN
      INSERT INTO everstate.append_results
          (append_id, day, log_id, recorded_at, first_position, last_position, content_hash, first_sequences)
        SELECT x.id, x.day, p_log, o_at, m.lo, m.hi, x.hash, m.sequences
        FROM unnest(r_no, r_id, r_day, r_hash) x(no, id, day, hash)
        JOIN (SELECT a.no, min(o_head + a.lo - a.shift) AS lo, max(o_head + a.hi - a.shift) AS hi,
                     array_agg(a.seq + 1 ORDER BY a.ord) AS sequences
              FROM unnest(a_no, o_sequences, o_verdicts, o_shifts, firsts, lasts)
                WITH ORDINALITY a(no, seq, v, shift, lo, hi, ord)
              WHERE a.v = 0 GROUP BY a.no) m ON m.no = x.no;
    END IF;
  END IF;
END $$;

-- == 0003: 0003_operations

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

-- == 0003: set_entity_states_v1

-- Sets the state of entities (0 active, 1 deleted, 2 tombstoned): the only writer of entities beside
-- the append function, whose verdict reads it. It locks the log's row first, as appends do, so that
-- no append is judged while a state changes, and it takes at most 500 entities, so that none waits
-- long.
--
-- p_from are the states that may be left; an entity in another one stays as it is. Returns the keys
-- that were changed, with their states before.
CREATE FUNCTION everstate.set_entity_states_v1(
  p_log int, p_types int[], p_ids text[], p_from smallint[], p_to smallint[])
RETURNS TABLE (entity_key bigint, state_before smallint)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
  IF cardinality(p_ids) > 500 THEN
    RAISE EXCEPTION 'more than 500 entities at once' USING ERRCODE = 'EV003';
  END IF;
  PERFORM FROM everstate.logs l WHERE l.log_id = p_log FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no log %', p_log USING ERRCODE = 'EV004';
  END IF;
  RETURN QUERY
    WITH wanted AS (
      SELECT w.type, w.id, w.s_to, h.state
      FROM unnest(p_types, p_ids, p_to) w(type, id, s_to)
      CROSS JOIN LATERAL (
        SELECT x.state FROM everstate.entities x
        WHERE x.log_id = p_log AND x.type_id = w.type AND x.entity_id = w.id LIMIT 1) h
      WHERE h.state = ANY (p_from) AND h.state <> w.s_to)
    UPDATE everstate.entities e SET state = w.s_to
    FROM wanted w
    WHERE e.log_id = p_log AND e.type_id = w.type AND e.entity_id = w.id
    RETURNING e.entity_key, w.state;
END $$;

-- What Alembic keeps.
CREATE TABLE everstate.alembic_version (
  version_num varchar(32) NOT NULL,
  CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO everstate.alembic_version (version_num) VALUES ('0003');
