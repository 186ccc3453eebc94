"""What the routes work with; one for each application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from fastapi import FastAPI, Request

from admin_ui.guard import Limits
from journal.store import StoreJournal, StoreSettings
from kernel.database import Database
from kernel.errors import Overloaded
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
