"""Policies: how operations of a kind are guarded; the kind's own until somebody sets another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from kernel import sql
from kernel.database import Connection, Database
from kernel.errors import Conflict, InvalidArgument
from kernel.principals import Principal
from operations import audit, store
from operations.kinds import KINDS, kind_named
from operations.model import Policy, PolicyRow

LEAST_EXPIRES_S, MOST_EXPIRES_S = 30, 7 * 86_400
MOST_UNDO_S = 365 * 86_400


def check(policy: Policy) -> Policy:
    """``policy`` when it is within its limits.

    Raises:
        InvalidArgument: names the field and the limit.

    """
    if not LEAST_EXPIRES_S <= policy.expires_s <= MOST_EXPIRES_S:
        raise InvalidArgument(
            "expires_s", f"{policy.expires_s} is not from {LEAST_EXPIRES_S} to {MOST_EXPIRES_S}"
        )
    if not (math.isfinite(policy.max_drift) and 0 <= policy.max_drift <= 1):
        raise InvalidArgument("max_drift", f"{policy.max_drift} is not from 0 to 1")
    if not 0 <= policy.undo_s <= MOST_UNDO_S:
        raise InvalidArgument("undo_s", f"{policy.undo_s} is not from 0 to {MOST_UNDO_S}")
    return policy


async def get_policy(database: Database, kind: str) -> PolicyRow:
    """The policy of a kind.

    Raises:
        InvalidArgument: there is no such kind.

    """
    default = kind_named(kind).policy
    found = await store.policies(database, kind)
    return found.get(kind) or PolicyRow(kind, default, 0, None, "")


async def policy_in(connection: Connection, schema: str, kind: str) -> Policy:
    """The policy of a kind, inside of somebody's transaction: whatever was set before it asks.

    Raises:
        InvalidArgument: there is no such kind.

    """
    default = kind_named(kind).policy
    return await store.policy_in(connection, schema, kind) or default


async def list_policies(database: Database) -> list[PolicyRow]:
    """The policies of all kinds, by name: as many as there are kinds."""
    found = await store.policies(database)
    return [
        found.get(name) or PolicyRow(name, KINDS[name].policy, 0, None, "")
        for name in sorted(KINDS)
    ]


async def set_policy(
    database: Database, kind: str, policy: Policy, *, version: int | None, principal: Principal
) -> PolicyRow:
    """Sets the policy of a kind for plans and applies from now on. ``version``: the one it must
    have (0: nobody has set one; None: any).

    Raises:
        InvalidArgument: there is no such kind, or a field is out of its limits.
        Conflict: it has another version.

    """
    return await change_policy(database, kind, asdict(policy), version=version, principal=principal)


async def change_policy(
    database: Database,
    kind: str,
    given: Mapping[str, Any],
    *,
    version: int | None,
    principal: Principal,
) -> PolicyRow:
    """As `set_policy`, for some of its fields: what is not ``given`` stays as it is.

    Raises:
        InvalidArgument: there is no such kind, or a field is out of its limits.
        Conflict: it has another version.

    """
    default = kind_named(kind).policy
    schema = database.schema
    async with database.connection(10, writing=True) as connection, connection.transaction():
        await connection.execute(sql.load("operations", "policies_lock", schema))
        before = await store.policy_in(connection, schema, kind) or default
        policy = check(replace(before, **given))
        if not await store.put_policy(connection, schema, kind, policy, principal.name, version):
            raise Conflict(f"the policy of {kind} has changed: it has no version {version}")
        await audit.record(
            connection, schema, "policy", kind, "PolicySet", asdict(policy), principal.identity
        )
    return await get_policy(database, kind)
