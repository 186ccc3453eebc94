"""What the routes work with; one for each application."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from fastapi import FastAPI, Request

from admin_ui.guard import Limits
from journal.store import StoreJournal, StoreSettings
from kernel.database import Database
from kernel.errors import Overloaded
from kernel.principals import Principal
from kernel.token_store import Tokens
from operations.kinds.base import Environment


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """How the admin answers.

    ``dev`` permits the few calls without a token that CONTRACTS.md names, from this machine only;
    ``dev_token`` is then the token of `everstate dev`, which no database knows.
    """

    version: str = "0"
    dev: bool = False
    dev_token: str = field(default="", repr=False)
    tls: bool = False
    limits: Limits = field(default_factory=Limits)
    read_seconds: float = 10.0
    """Statements of read models end after this."""
    reads: int = 4
    """So many pages of read models are read at once; others queue, and give up at the deadline."""
    wait_seconds: float = 60.0
    """Nobody waits longer for a projection."""
    watch_seconds: float = 60.0
    """A stream of progress ends after this; who watches comes again."""
    page_bytes: int = 8_000_000
    """A page of rows ends after so many bytes, whatever its limit."""


class Gate:
    """Lets in so many at once, so that those who wait leave room for those who do not."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0

    def __enter__(self) -> None:
        if self._inside >= self._most:
            raise Overloaded(f"{self._most} requests are waiting already", timedelta(seconds=1))
        self._inside += 1

    def __exit__(self, *_: object) -> None:
        self._inside -= 1


class Streams:
    """Lets in so many watchers at once, and of each principal so many."""

    def __init__(self, most: int, each: int) -> None:
        self._most = most
        self._each = each
        self._inside: Counter[str] = Counter()

    @contextlib.contextmanager
    def place(self, principal: Principal) -> Iterator[None]:
        """Inside, the principal has a place.

        Raises:
            Overloaded: it has as many as it may, or there is none left.

        """
        who = principal.identity
        if self._inside[who] >= self._each:
            raise Overloaded(
                f"{principal.name!r} watches {self._each} streams already", timedelta(seconds=1)
            )
        if self._inside.total() >= self._most:
            raise Overloaded(f"{self._most} streams are watched already", timedelta(seconds=1))
        self._inside[who] += 1
        try:
            yield
        finally:
            self._inside[who] -= 1
            if not self._inside[who]:
                del self._inside[who]


class Queue:
    """Lets in so many at once; others wait. What is slow leaves connections for what is quick."""

    def __init__(self, most: int) -> None:
        self._room = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def turn(self, seconds: float) -> AsyncIterator[None]:
        """Inside, it is the caller's turn.

        Raises:
            Overloaded: it did not come within ``seconds``.

        """
        try:
            async with asyncio.timeout(seconds):
                await self._room.acquire()
        except TimeoutError:
            raise Overloaded(
                f"no turn within {seconds:g} s: others read too", timedelta(seconds=1)
            ) from None
        try:
            yield
        finally:
            self._room.release()


@dataclass(frozen=True)
class Services:
    """What the routes work with. ``environment``: what user code gives plans (folds)."""

    database: Database
    settings: AdminSettings
    tokens: Tokens
    waits: Gate
    streams: Streams
    reads: Queue
    environment: Environment = field(default_factory=Environment)

    @cached_property
    def journal(self) -> StoreJournal:
        """The logs, to read; nothing is appended here."""
        return StoreJournal(self.database, StoreSettings(node="admin"))


def services_of(request: Request) -> Services:
    """The services of the application that a request came to."""
    app: FastAPI = request.app
    services: Services = app.state.services
    return services
