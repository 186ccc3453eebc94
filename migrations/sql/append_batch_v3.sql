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
