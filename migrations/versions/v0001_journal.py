"""The journal: logs, events, entities, snapshots and the append function."""

from __future__ import annotations

from importlib.resources import files

from alembic import context, op

from kernel.sql import in_schema

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
    schema: str = context.config.attributes["schema"]
    for name in SCRIPTS:
        script = in_schema(
            files("migrations").joinpath("sql", f"{name}.sql").read_text("utf-8"), schema
        )
        if context.is_offline_mode():
            context.get_context().impl.static_output(script)
            continue
        bind = op.get_bind()
        # SQLAlchemy begins its transaction with the first statement that goes through it; several
        # statements at once only the driver can take.
        bind.exec_driver_sql("SELECT 1")
        connection = bind.connection.dbapi_connection
        assert connection is not None
        connection.run_async(lambda driver, text=script: driver.execute(text))


def downgrade() -> None:
    """There is nothing before the first version."""
    raise RuntimeError("the first version has none before it; drop the schema instead")
