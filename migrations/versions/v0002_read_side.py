"""The read side: leases, members, tokens, projections, consumer groups, descriptors."""

from __future__ import annotations

from migrations import scripts

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCRIPTS = (
    "0002_processes",
    "0002_tokens",
    "0002_projections",
    "create_confined_role_v1",
    "create_read_model_v1",
    "publish_read_model_v1",
    "drop_read_model_v1",
    "0002_replays",
    "grant_read_model_v1",
    "digest_read_model_v1",
    "differ_read_models_v1",
    "0002_groups",
    "0002_descriptors",
    "append_batch_v2",
)


def upgrade() -> None:
    """Adds tables and functions; nothing that exists is changed."""
    scripts.run(SCRIPTS)


def downgrade() -> None:
    """Read models and checkpoints would be lost without a word."""
    raise RuntimeError("there is no way back to 0001: restore a backup instead")
