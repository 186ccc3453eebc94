"""Snapshots with a policy, folds, operations."""

from __future__ import annotations

from migrations import scripts

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCRIPTS = (
    "0003_snapshots",
    "event_time_v1",
    "snapshot_is_usable_v1",
    "append_batch_v3",
    "0003_operations",
    "set_entity_states_v1",
)


def upgrade() -> None:
    """Adds columns, tables and functions; nothing that exists is changed."""
    scripts.run(SCRIPTS)


def downgrade() -> None:
    """Floors, holds and receipts would be lost without a word."""
    raise RuntimeError("there is no way back to 0002: restore a backup instead")
