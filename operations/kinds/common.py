"""What the kinds share: reading parameters, and words for their sentences."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from kernel import sql
from kernel.errors import InternalError, InvalidArgument
from operations.kinds.base import Context
from operations.model import OperationRow, PlanBody, Selection

ID_PREFIX = "op-"
_TYPES_NAMED = 3


def only(given: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """``given`` when it has no parameter but these.

    Raises:
        InvalidArgument: it has; names it, and those there are.

    """
    for name in given:
        if name not in names:
            known = f"one of {', '.join(names)}" if names else "any: this kind takes none"
            raise InvalidArgument(f"parameters.{name:.60}", f"is not {known}")
    return given


def flag(given: Mapping[str, Any], name: str) -> bool:
    """A parameter that is true or false; false when it is not given. Raises `InvalidArgument`."""
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameters.{name}", "is not true or false")
    return value


def number(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """A whole number within the limits; None: it is not given. Raises `InvalidArgument`."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"parameters.{name}", "is not a whole number")
    if not low <= value <= high:
        raise InvalidArgument(f"parameters.{name}", f"{value} is not within {low}..{high}")
    return value


def text(given: Mapping[str, Any], name: str, most: int) -> str:
    """A text of at most so many characters; empty when not given. Raises `InvalidArgument`."""
    value = given.get(name, "")
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise InvalidArgument(f"parameters.{name}", f"is not a text of at most {most} characters")
    return value


def no_selection(context: Context) -> None:
    """Refuses conditions on entities where the target is everything. Raises `InvalidArgument`."""
    if replace(context.selection, log="default") != Selection():
        raise InvalidArgument("selection", "this kind acts on its target as a whole: give none")


async def positions_of(context: Context, last: int) -> tuple[int, int]:
    """The positions of a selection's bounds, inclusive; without bounds 1 and ``last``."""
    bounds = context.selection.from_, context.selection.to
    low, high = [
        without
        if bound is None
        else bound.position or (await context.journal.position_at(context.log, bound.time_us))[0]
        for bound, without in zip(bounds, (1, last), strict=True)
    ]
    if context.selection.to is not None and context.selection.to.time_us:
        high -= 1  # what happened at that time is not meant any more
    return low, high


async def average_bytes(context: Context, log_id: int) -> float:
    """Payload bytes of a log's average event, for estimates."""
    row = await context.database.fetchrow(
        sql.load("operations", "average_bytes", context.database.schema), log_id, timeout=30
    )
    return float(row["bytes"]) if row else 0.0


def running(context: Context) -> OperationRow:
    """The operation that is run."""
    if context.operation is None:
        raise InternalError("a step of an operation without the operation")
    return context.operation


def uuid_of(operation: OperationRow) -> str:
    """The UUID inside an operation's id."""
    return operation.id.removeprefix(ID_PREFIX)


def count(number_: int, one: str, many: str) -> str:
    """``1 entity``, ``12,400 entities``."""
    return f"{number_:,} {one if number_ == 1 else many}"


def entities(body: PlanBody, context: Context) -> str:
    """What a plan acts on: ``12 entities of type cart``."""
    types = _types(context)
    of = f" of type {', '.join(types)}" if 0 < len(types) <= _TYPES_NAMED else ""
    return f"{count(body.items, 'entity', 'entities')}{of}"


def them(body: PlanBody) -> str:
    """``it`` or ``them``."""
    return "it" if body.items == 1 else "them"


def _types(context: Context) -> list[str]:
    selection = context.selection
    chosen: Iterable[str] = selection.types or (kind for kind, _ in selection.entities)
    return sorted(set(chosen))
