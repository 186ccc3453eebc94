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
