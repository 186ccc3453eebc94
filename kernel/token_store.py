"""The tokens of an installation, in the database: made, listed, ended, and who they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from kernel import clock, sql
from kernel.database import Database
from kernel.errors import AlreadyExists, EverstateError, InvalidArgument, NotFound, Unauthenticated
from kernel.ids import new_id
from kernel.principals import Principal, Role, check_grants
from kernel.tokens import DEFAULT_DAYS, MAX_DAYS, digest_of, is_same, mint

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,79}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class TokenView:
    """What everyone who may list tokens sees of one. ``last_used_at`` is coarse: to 5 minutes."""

    token_id: str
    name: str
    role: Role
    grants: frozenset[str]
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None
    revoked_by: str | None
    last_used_at: datetime | None

    def state(self, now: datetime) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if now < self.expires_at else "expired"


class Tokens:
    """The tokens of a database. Whoever may call these methods may hand out rights."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        name: str,
        role: Role,
        *,
        by: str,
        grants: frozenset[str] = frozenset(),
        days: int = DEFAULT_DAYS,
    ) -> tuple[str, TokenView]:
        """A new token, shown here and never again, valid for ``days`` (1 to 3,660).

        Raises:
            InvalidArgument: the name, a grant or the number of days is not allowed.
            AlreadyExists: a token of this name is neither revoked nor expired.

        """
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                "name",
                "is 1 to 80 letters, digits and . _ @ -, of which the first is a letter or digit",
            )
        if not 1 <= days <= MAX_DAYS:
            raise InvalidArgument("days", f"{days} is not within 1 to {MAX_DAYS}")
        check_grants(grants)
        token = mint()
        statement = sql.load("kernel", "token_create", self._database.schema)
        row = await self._database.fetchrow(
            statement, UUID(new_id()), name, digest_of(token), role.word, sorted(grants), by,
            timedelta(days=days),
        )  # fmt: skip
        if row is None:
            raise AlreadyExists(f"there is a valid token {name!r} already; revoke it first")
        return token, _view(row)

    async def list(self, after: str = "", limit: int = 100) -> Sequence[TokenView]:
        """Tokens in the order they were made, after the token id ``after``."""
        start = UUID(after) if _UUID.fullmatch(after) else UUID(int=0)
        statement = sql.load("kernel", "tokens", self._database.schema)
        return [_view(row) for row in await self._database.fetch(statement, start, limit)]

    async def revoke(self, name_or_id: str, *, by: str) -> TokenView:
        """Ends a token at once, named by its id or by its name; again: nothing more happens.

        Raises:
            NotFound: there is no such token.

        """
        token_id = UUID(name_or_id) if _UUID.fullmatch(name_or_id) else None
        statement = sql.load("kernel", "token_revoke", self._database.schema)
        row = await self._database.fetchrow(statement, token_id, name_or_id, by)
        if row is None:
            raise NotFound(f"there is no token {name_or_id!r:.90}")
        return _view(row)

    async def authenticate(self, token: str, *, timeout: float | None = 5) -> Principal:
        """The principal of a token.

        Raises:
            Unauthenticated: the token is unknown, has expired or was revoked; which of them is
                said only to who holds a token that once was valid.

        """
        digest = digest_of(token)
        if digest is None:
            raise Unauthenticated("this is not a token of Everstate")
        statement = sql.load("kernel", "token_by_digest", self._database.schema)
        row = await self._database.fetchrow(statement, digest, timeout=timeout)
        if row is None or not is_same(token, row["digest"]):
            raise Unauthenticated("the token is not known here")
        view = _view(row)
        state = view.state(row["now"])
        if state != "valid":
            ended = view.revoked_at or view.expires_at
            raise Unauthenticated(
                f"the token {view.name!r} has {'expired' if state == 'expired' else 'been revoked'}"
                f" ({clock.format_us(clock.to_us(ended))})"
            )
        if row["stale"]:
            await self._used(view.token_id)
        return Principal("token", view.name, view.role, view.grants, view.token_id)

    async def _used(self, token_id: str) -> None:
        """Notes the use of a token; that it could not be noted is no reason to refuse it."""
        statement = sql.load("kernel", "token_used", self._database.schema)
        try:
            await self._database.fetchrow(statement, UUID(token_id), timeout=1)
        except EverstateError:
            return


def _view(row: Any) -> TokenView:
    return TokenView(
        token_id=str(row["token_id"]),
        name=row["name"],
        role=Role.of(row["role"]),
        grants=frozenset(row["grants"]),
        created_at=row["created_at"],
        created_by=row["created_by"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        revoked_by=row["revoked_by"],
        last_used_at=row["last_used_at"],
    )
