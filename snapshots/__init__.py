"""Snapshots: saving, listing, policies per entity type, folds, and the proof that load = replay."""
