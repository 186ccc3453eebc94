-- Whether loads of entities of a type use snapshots of a type of snapshots, by the settings of the
-- entity type (snapshots/model.py). Removed snapshots are nobody's; that is not asked here.
-- One expression without settings of its own, so that the planner puts it in the place of the call.
CREATE FUNCTION everstate.snapshot_is_usable_v1(p_settings jsonb, p_type text)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT p_settings = '{}'
    OR NOT coalesce((p_settings ->> 'needs_full_replay')::boolean, false)
      AND (coalesce(p_settings -> 'snapshot_types', '[]') = '[]' OR p_settings -> 'snapshot_types' ? p_type)
$$;
