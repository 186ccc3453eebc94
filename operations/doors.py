"""The direct ways beside operations: orders that are carried out at once, without a plan.

They are there for programs and for haste. Where the policy of the kind asks for more than one
person's word they are shut, and what goes through leaves an audit event in its own transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kernel.audit import record
from kernel.database import Connection, Database
from kernel.errors import PermissionDenied
from operations import store
from operations.model import Policy

Through = Callable[[Connection], Awaitable[None]]
"""What an order does first in its transaction; raises where the door is shut."""


async def check(database: Database, kind: str) -> None:
    """Returns where orders of a kind may be given directly.

    Raises:
        PermissionDenied: the policy of the kind wants a second person, or that something is typed.

    """
    found = (await store.policies(database, kind)).get(kind)
    if found is not None:
        _judge(kind, found.policy)


def through(
    schema: str, kind: str, entity: tuple[str, str], type_: str, data: Mapping[str, Any], by: str
) -> Through:
    """A door: `check` under the order's transaction, and the audit event of it.

    ``entity`` (type, id): of the log `_system`, where the event ``type_`` comes to be.
    """

    async def passed(connection: Connection) -> None:
        policy = await store.policy_in(connection, schema, kind)
        if policy is not None:
            _judge(kind, policy)
        await record(connection, schema, *entity, type_, data, by)

    return passed


def _judge(kind: str, policy: Policy) -> None:
    wanted = [
        name
        for name, is_set in (
            ("a second person", policy.second_person),
            ("something to be typed", policy.typed),
        )
        if is_set
    ]
    if wanted:
        raise PermissionDenied(
            f"the policy of {kind} wants {' and '.join(wanted)}: plan the operation"
            f" (`everstate operation plan {kind}`)"
        )
