"""Who asks: a principal with one role, and what it may do beyond the role (grants).

Every HTTP route and every act of an operator has a principal. Roles are ordered: who may do what an
operator may, may also do what a viewer may. Grants are apart from roles: ``payload`` is the right
to see what is inside of events, which an administrator of the machinery does not need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Literal

from kernel.errors import InvalidArgument, PermissionDenied

Kind = Literal["token", "dev", "system"]

PAYLOAD: Final = "payload"
GRANTS: Final = frozenset({PAYLOAD})


class Role(IntEnum):
    """What a principal may do; each may do all that the smaller ones may."""

    VIEWER = 1
    """Looks at everything but payloads."""
    OPERATOR = 2
    """Runs projections, groups and operations."""
    ADMIN = 3
    """Says who may do what."""

    @property
    def word(self) -> str:
        """The role as people and the API write it."""
        return self.name.lower()

    @classmethod
    def of(cls, word: str, name: str = "role") -> Role:
        """The role of a word.

        Raises:
            InvalidArgument: there is no such role; names the field ``name``.

        """
        for role in cls:
            if role.word == word:
                return role
        known = ", ".join(role.word for role in cls)
        raise InvalidArgument(name, f"{word!r:.40} is not one of {known}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``identity`` is stable over renames; ``name`` is for people and the audit."""

    kind: Kind
    name: str
    role: Role
    grants: frozenset[str] = field(default=frozenset())
    key: str = ""

    @property
    def identity(self) -> str:
        """What this principal is kept under: kind and key."""
        return f"{self.kind}:{self.key or self.name}"

    def require(self, role: Role) -> None:
        """Returns when the principal has ``role`` or a higher one.

        Raises:
            PermissionDenied: it has a lower one.

        """
        if self.role < role:
            raise PermissionDenied(
                f"this needs the role {role.word}; {self.name!r} has the role {self.role.word}"
            )

    def require_grant(self, grant: str) -> None:
        """Returns when the principal has ``grant``.

        Raises:
            PermissionDenied: it has not.

        """
        if grant not in self.grants:
            raise PermissionDenied(f"this needs the grant {grant}, which {self.name!r} has not")


def check_grants(grants: frozenset[str], name: str = "grants") -> frozenset[str]:
    """``grants`` when all of them exist.

    Raises:
        InvalidArgument: one does not; names the field ``name``.

    """
    if unknown := grants - GRANTS:
        raise InvalidArgument(
            name, f"{min(unknown)!r:.40} is not a grant; there is {', '.join(sorted(GRANTS))}"
        )
    return grants
