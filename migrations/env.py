"""Alembic's environment: one connection, one advisory lock, one transaction a migration.

The lock makes it safe that several nodes start at once: the second waits, then finds nothing to do.
`everstate migrate` hands over the URL and the schema in ``config.attributes``.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
from alembic import context
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from kernel.database import translate

config = context.config
SCHEMA: str = config.attributes["schema"]
LOCK = "SELECT pg_advisory_lock(hashtext('everstate.migrate'), hashtext('{schema}'))"


def _migrate(connection: Connection) -> None:
    # A migration may wait for its turn, but not for ever behind a frozen one.
    connection.exec_driver_sql("SET lock_timeout = '60s'")
    connection.exec_driver_sql(LOCK.format(schema=SCHEMA))
    connection.exec_driver_sql("SET lock_timeout = '10s'")
    connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{SCHEMA}"')
    connection.commit()
    context.configure(
        connection=connection, version_table_schema=SCHEMA, transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()


async def _online() -> None:
    async def connect(*_: object, **__: Any) -> Any:
        return await asyncpg.connect(config.attributes["url"], timeout=10)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
    except DBAPIError as error:
        # SQLAlchemy's error, its dialect's, the driver's: what happened is in the last one.
        cause = error.orig.__cause__ if error.orig is not None else None
        raise translate(cause or error) from error
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        version_table_schema=SCHEMA,
        transaction_per_migration=True,
        literal_binds=True,
    )
    context.get_context().impl.static_output(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA};\n")
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(_online())
