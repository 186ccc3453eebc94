"""Runs the scripts of `migrations/sql`, in the schema that is being migrated."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from alembic import context, op

from kernel.sql import in_schema


def run(names: Sequence[str]) -> None:
    """Runs scripts of several statements each, in order, within the migration's transaction."""
    schema: str = context.config.attributes["schema"]
    for name in names:
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
