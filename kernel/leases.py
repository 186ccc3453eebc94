"""Leases: who works on what, so that one thing is worked on by one process at a time.

A lease has a holder, a term and an epoch. The holder renews it well within the term; when it stops
(killed, frozen, cut off), anyone may take the lease after the term, and gets the next epoch. A
holder that only seemed dead must not commit after that: it ends every transaction with `fence`,
which locks the lease's row until the commit and raises `LeaseLost` when the epoch has passed on.
(Gray, Cheriton 1989, "Leases"; the epoch is a fencing token as Kleppmann 2016 describes it.)

All times are the database's, so clocks of processes do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kernel import sql
from kernel.database import Connection, Database
from kernel.errors import LeaseLost

TERM = timedelta(seconds=10)
"""The usual term; holders renew after a third of it."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as it was when it was taken."""

    kind: str
    name: str
    holder: str
    epoch: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class LeaseView:
    """What everyone may see of a lease; ``held``: it had not run out."""

    name: str
    holder: str
    epoch: int
    acquired_at: datetime
    expires_at: datetime
    held: bool


class Leases:
    """The leases of one kind for one holder. ``holder`` is unique to the process."""

    def __init__(self, database: Database, kind: str, holder: str, term: timedelta = TERM) -> None:
        self._database = database
        self.kind = kind
        self.holder = holder
        self.term = term

    def _sql(self, name: str) -> str:
        return sql.load("kernel", name, self._database.schema)

    async def acquire(self, name: str, *, timeout: float | None = 5) -> Lease | None:
        """Takes a lease; None: somebody else holds it. The holder's own one gets a new epoch."""
        row = await self._database.fetchrow(
            self._sql("lease_acquire"), self.kind, name, self.holder, self.term, timeout=timeout
        )
        return Lease(self.kind, name, self.holder, row[0], row[1]) if row else None

    async def renew(self, leases: Sequence[Lease], *, timeout: float | None = 5) -> set[str]:
        """Prolongs leases; the names of those that are still held. The others are lost."""
        if not leases:
            return set()
        rows = await self._database.fetch(
            self._sql("leases_renew"), self.kind, [lease.name for lease in leases],
            [lease.epoch for lease in leases], self.holder, self.term, timeout=timeout,
        )  # fmt: skip
        return {row[0] for row in rows}

    async def release(self, lease: Lease, *, timeout: float | None = 5) -> None:
        """Gives a lease back, so that nobody has to wait for its end."""
        await self._database.fetchrow(
            self._sql("lease_release"), lease.kind, lease.name, lease.holder, lease.epoch,
            timeout=timeout,
        )  # fmt: skip

    async def list(self, prefix: str = "", *, timeout: float | None = 5) -> list[LeaseView]:
        """The leases of this kind, by name."""
        rows = await self._database.fetch(self._sql("leases"), self.kind, prefix, timeout=timeout)
        return [LeaseView(*row) for row in rows]


async def fence(connection: Connection, lease: Lease, schema: str) -> None:
    """Ends the statements of a transaction of leased work; commit right after it.

    Raises:
        LeaseLost: somebody else has the lease; roll back.

    """
    row = await connection.fetchrow(
        sql.load("kernel", "lease_fence", schema), lease.kind, lease.name, lease.holder, lease.epoch
    )
    if row is None:
        raise LeaseLost(f"{lease.kind} {lease.name}: another process has taken over")
