"""PostgreSQL: connections, deadlines, and what driver errors mean.

Driver errors never leave a store: `driver_errors` turns them into the error tree. Deadlines reach
the server: every connection carries a ``statement_timeout``, lowered (in steps, so that it is
rarely sent) for callers that wait shorter; ``lock_timeout`` and
``idle_in_transaction_session_timeout`` keep a frozen process from stopping a log.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from kernel.errors import (
    ClockSkew,
    ConfigurationError,
    CorruptLog,
    DeadlineExceeded,
    EverstateError,
    InternalError,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    SchemaMismatch,
    Unavailable,
    UnsafeServer,
    UnsupportedServer,
)
from kernel.sql import DEFAULT_SCHEMA, check_schema_name

log = structlog.get_logger(__name__)

OLDEST_SERVER = 15
NEWEST_SERVER = 18

_SET_SECONDS = 5.0
_RELEASE_SECONDS = 5.0

_STEPS_MS = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000)


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """How to reach PostgreSQL and how long anything may take there."""

    url: str
    schema: str = DEFAULT_SCHEMA
    min_connections: int = 1
    max_connections: int = 8
    application_name: str = "everstate"
    connect_timeout: timedelta = timedelta(seconds=5)
    statement_timeout: timedelta = timedelta(seconds=30)
    lock_timeout: timedelta = timedelta(seconds=10)
    idle_transaction_timeout: timedelta = timedelta(seconds=15)
    answer_timeout: timedelta = timedelta(seconds=5)
    """How much longer than the server's ``statement_timeout`` a client waits for an answer: a
    server that is gone without a word (a firewall, a frozen host) ends no statement.
    """


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg is untyped
    """A connection that knows which ``statement_timeout`` it has."""

    __slots__ = ("timeout_ms",)

    async def bind_timeout(self, timeout: float | None, default_ms: int) -> None:
        """Sees to it that a statement ends on the server soon after ``timeout`` seconds."""
        wanted = default_ms
        if timeout is not None and timeout * 1000 < default_ms:
            wanted = next((step for step in _STEPS_MS if step >= timeout * 1000), default_ms)
        if getattr(self, "timeout_ms", default_ms) != wanted:
            self.timeout_ms = -1  # until the server has answered
            await self.execute(f"SET statement_timeout = {wanted}", timeout=_SET_SECONDS)
            self.timeout_ms = wanted


def mask(url: str) -> str:
    """A connection string that may be shown: without its password."""
    # Up to the last @: a password may hold / and @, though it should not unescaped.
    shown = re.sub(r"(://[^/@:]*):.*@", r"\1:***@", url)
    return re.sub(r"(password=)[^&\s]*", r"\1***", shown)


def check_url(url: str) -> str:
    """``url`` when it looks like a PostgreSQL connection URL.

    Raises:
        ConfigurationError: it does not; the message holds no secret.

    """
    try:
        parts = urlsplit(url)
        _ = parts.port
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigurationError("EVERSTATE_DATABASE_URL: not a URL") from None
    if parts.fragment or "@" in parts.path:
        # What we would take for the host is a part of the password.
        raise ConfigurationError(
            "EVERSTATE_DATABASE_URL: write / ? # @ in a name or password as %2F %3F %23 %40"
        )
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigurationError(
            "EVERSTATE_DATABASE_URL: begins with postgresql://, as in "
            "postgresql://user@host:5432/database"
        )
    return url


# SQLSTATE (class or whole) → what it means for callers. Whole codes win over classes.
_RETRY_LATER = "the database cannot serve now"
_STATES: Mapping[str, type[EverstateError] | str] = {
    "57014": DeadlineExceeded,  # query_canceled: statement_timeout
    "55P03": "a lock was not free in time",
    "40001": "the transaction was serialised away",
    "40P01": "a deadlock was broken",
    "25006": "the database is read-only (a failover?)",
    "53": "the database is out of resources",
    "57P": _RETRY_LATER,
    "08": _RETRY_LATER,
    "EV002": ClockSkew,
    "EV003": CorruptLog,
    "EV004": NotFound,
}


def translate(error: BaseException, *, writing: bool = False) -> EverstateError:
    """What a driver error means. ``writing``: a lost connection leaves the outcome unknown."""
    if isinstance(error, EverstateError):
        return error
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        meaning = _STATES.get(state) or _STATES.get(state[:3]) or _STATES.get(state[:2])
        # An administrator's shutdown ends the session in the middle of the statement.
        if writing and (state[:2] == "08" or state in ("57P01", "57P02", "57P05")):
            return OutcomeUnknown()
        if isinstance(meaning, str):
            return Unavailable(f"{meaning} (SQLSTATE {state})")
        if meaning is DeadlineExceeded:
            return DeadlineExceeded("the database gave up at the deadline; nothing was written")
        if meaning is not None:
            return meaning(str(error))
        if state[:2] in ("22", "23"):
            return InvalidArgument("request", f"refused by the database (SQLSTATE {state})")
        if state in ("42P01", "3F000", "42883", "42703"):
            return SchemaMismatch(f"the database lacks a part of the schema (SQLSTATE {state})")
        if state == "42501":
            return ConfigurationError("the database role lacks a privilege (SQLSTATE 42501)")
        return InternalError(f"unexpected answer of the database (SQLSTATE {state})")
    if isinstance(error, TimeoutError):
        return (
            OutcomeUnknown("no answer in time; it is not known whether it was written")
            if (writing)
            else DeadlineExceeded()
        )
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return OutcomeUnknown() if writing else Unavailable("the database cannot be reached")
    return InternalError(f"unexpected {type(error).__name__}")


_DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


@contextmanager
def driver_errors(*, writing: bool = False) -> Iterator[None]:
    """Turns driver errors raised inside into the error tree."""
    try:
        yield
    except _DRIVER_ERRORS as error:
        raise translate(error, writing=writing) from error


async def _keep_state(_: object) -> None:
    """Pool reset: our sessions change nothing but statement_timeout, which they track."""


class Database:
    """A pool of connections to one database and schema.

    Made by `open`, closed by `close`. Connections come from `connection`; the pool is bounded and
    waiting for one ends at the caller's timeout.
    """

    def __init__(self, settings: DatabaseSettings, pool: Any) -> None:
        self.settings = settings
        self.schema = settings.schema
        self._pool = pool
        self.default_ms = int(settings.statement_timeout.total_seconds() * 1000)

    @classmethod
    async def open(cls, settings: DatabaseSettings) -> Database:
        """Connects.

        Raises:
            ConfigurationError: the URL or the schema's name is wrong, or the server refuses the
            role. Unavailable: the server cannot be reached.

        """
        check_schema_name(settings.schema)
        pool = asyncpg.create_pool(
            check_url(settings.url),
            min_size=settings.min_connections,
            max_size=settings.max_connections,
            connection_class=Connection,
            reset=_keep_state,
            **_connect_options(settings),
        )
        try:
            async with asyncio.timeout(settings.connect_timeout.total_seconds() + 1):
                await pool
        except BaseException as error:
            pool.terminate()
            refused = connect_error(error, settings.url)
            if refused is None:
                raise
            raise refused from error
        return cls(settings, pool)

    async def close(self) -> None:
        """Closes every connection; those in use get a short while to be given back."""
        try:
            async with asyncio.timeout(3):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @property
    def connections(self) -> tuple[int, int]:
        """(open, idle) connections of the pool."""
        return self._pool.get_size(), self._pool.get_idle_size()

    @asynccontextmanager
    async def connection(
        self, timeout: float | None = None, *, writing: bool = False
    ) -> AsyncIterator[Connection]:
        """A connection whose statements end after ``timeout`` seconds (default: the setting).

        Driver errors raised inside come out as the error tree.
        """
        try:
            acquired: PoolConnectionProxy = await self._pool.acquire(
                timeout=timeout or self.settings.connect_timeout.total_seconds()
            )
        except _DRIVER_ERRORS as error:
            raise connect_error(error, self.settings.url) or Unavailable() from error
        try:
            connection: Connection = acquired._con  # noqa: SLF001 - the proxy costs 10 % of a read
            with driver_errors():
                await connection.bind_timeout(timeout, self.default_ms)
            with driver_errors(writing=writing):
                yield connection
        finally:
            try:
                await self._pool.release(acquired, timeout=_RELEASE_SECONDS)
            except Exception as error:  # noqa: BLE001 - it must not hide what the caller is told
                # It was closed: the pool opens another one in its place.
                log.warning("a connection was given up", reason=type(error).__name__)

    async def fetch(self, sql: str, *args: object, timeout: float | None = None) -> list[Any]:
        """All rows of one statement."""
        async with self.connection(timeout) as connection:
            rows: list[Any] = await connection.fetch(sql, *args, timeout=timeout)
            return rows

    async def fetchrow(self, sql: str, *args: object, timeout: float | None = None) -> Any:
        """The first row of one statement, or None."""
        async with self.connection(timeout) as connection:
            return await connection.fetchrow(sql, *args, timeout=timeout)


def _connect_options(settings: DatabaseSettings) -> dict[str, Any]:
    def ms(duration: timedelta) -> str:
        return str(int(duration.total_seconds() * 1000))

    return {
        "timeout": settings.connect_timeout.total_seconds(),
        "command_timeout": (settings.statement_timeout + settings.answer_timeout).total_seconds(),
        "server_settings": {
            "application_name": settings.application_name,
            "statement_timeout": ms(settings.statement_timeout),
            "lock_timeout": ms(settings.lock_timeout),
            "idle_in_transaction_session_timeout": ms(settings.idle_transaction_timeout),
            "default_transaction_isolation": "read committed",
            "timezone": "UTC",
            "jit": "off",
            # A kept plan that was made while a table was small would scan it when it has grown.
            "enable_seqscan": "off",
        },
    }


@asynccontextmanager
async def transaction(connection: Connection, seconds: float) -> AsyncIterator[None]:
    """A transaction that has ended after ``seconds``: then the connection is cut.

    What failed inside comes out, also when the connection was lost and cannot roll back.

    Raises:
        Unavailable: the connection was lost before the commit was asked for; nothing was written.

    """
    failure: BaseException | None = None
    cut = asyncio.get_running_loop().call_later(seconds, connection.terminate)
    try:
        async with connection.transaction():
            try:
                yield
            except BaseException as error:
                failure = error
                if isinstance(error, TimeoutError):  # the server has ignored its own timeout
                    connection.terminate()
                raise
    except Exception as error:
        if failure is None:
            raise
        if isinstance(failure, _DRIVER_ERRORS) and connection.is_closed():
            raise Unavailable("the connection was lost; nothing was written") from failure
        if error is failure:
            raise
        raise failure from error
    finally:
        cut.cancel()


async def connect(settings: DatabaseSettings) -> Connection:
    """One connection outside the pool; the caller closes it. Raises as `Database.open`."""
    try:
        async with asyncio.timeout(settings.connect_timeout.total_seconds() + 1):
            connection: Connection = await asyncpg.connect(
                check_url(settings.url),
                connection_class=Connection,
                **_connect_options(settings),
            )
            return connection
    except BaseException as error:
        refused = connect_error(error, settings.url)
        if refused is None:
            raise
        raise refused from error


def connect_error(error: BaseException, url: str) -> EverstateError | None:
    """A sentence for why connecting failed, without secrets; None: not ours to explain."""
    if isinstance(error, EverstateError):  # check_url's: of such a URL nothing may be shown
        return error
    parts = urlsplit(url)
    host = dict(parse_qsl(parts.query)).get("host") or parts.hostname or "the default socket"
    where = f"the database at {host}" + (f":{parts.port}" if parts.port else "")
    if isinstance(
        error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError
    ):
        return ConfigurationError(f"{where} refuses the user name or password")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return ConfigurationError(f"{where} has no database {parts.path.lstrip('/')!r}")
    if isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigurationError(f"EVERSTATE_DATABASE_URL: {error}")
    if isinstance(error, ssl.SSLError):
        return ConfigurationError(f"{where}: TLS failed ({getattr(error, 'reason', '')})")
    if isinstance(error, asyncpg.PostgresError):
        return Unavailable(f"{where} takes no connection now (SQLSTATE {error.sqlstate})")
    if isinstance(error, TimeoutError):
        return Unavailable(f"{where} does not answer")
    if isinstance(error, OSError):
        reason = (error.strerror or type(error).__name__).splitlines()[0]
        if "Multiple exceptions" in str(error) or "Connect call failed" in str(error):
            reason = "connection refused"
        return Unavailable(f"{where} cannot be reached: {reason}")
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return Unavailable(f"{where} cannot be used: {error}")
    return None


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself."""

    version: int
    version_text: str
    fsync: bool
    full_page_writes: bool
    max_locks_per_transaction: int


async def server_facts(connection: Connection) -> ServerFacts:
    """Asks the server for its version and the settings that durability hangs on."""
    with driver_errors():
        row = await connection.fetchrow(
            "SELECT current_setting('server_version_num')::int / 10000 AS version,"
            " current_setting('server_version') AS text, current_setting('fsync')::bool AS fsync,"
            " current_setting('full_page_writes')::bool AS fpw,"
            " current_setting('max_locks_per_transaction')::int AS locks"
        )
    return ServerFacts(row["version"], row["text"], row["fsync"], row["fpw"], row["locks"])


def check_server(facts: ServerFacts) -> None:
    """Refuses a server that is too old, or that could lose acknowledged events.

    Raises:
        UnsupportedServer: older than PostgreSQL 15.
        UnsafeServer: fsync or full_page_writes is off.

    """
    if facts.version < OLDEST_SERVER:
        raise UnsupportedServer(
            f"the database server is PostgreSQL {facts.version_text}; "
            f"Everstate needs {OLDEST_SERVER} to {NEWEST_SERVER}"
        )
    off = [
        name
        for name, on in (("fsync", facts.fsync), ("full_page_writes", facts.full_page_writes))
        if not on
    ]
    if off:
        raise UnsafeServer(f"the database server has {' and '.join(off)} off")
