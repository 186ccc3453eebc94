"""The journal: logs, events, entities, snapshots and the append function."""

from __future__ import annotations

from migrations import scripts

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCRIPTS = (
    "0001_journal",
    "create_chunk_v1",
    "create_log_v1",
    "prepare_append_results_v1",
    "append_batch_v1",
    "0001_logs",
)


def upgrade() -> None:
    """Makes everything; the logs ``default`` and ``_system`` are empty."""
    scripts.run(SCRIPTS)


def downgrade() -> None:
    """There is nothing before the first version."""
    raise RuntimeError("the first version has none before it; drop the schema instead")
