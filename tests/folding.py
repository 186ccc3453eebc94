"""What tests of folds share: a fold by hand, and entities with events and snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from journal.model import ANY, Append, EntityAppend, NewEvent, NewSnapshot
from journal.store import StoreJournal
from kernel import clock
from schemas.descriptors import Decoder
from snapshots.folding import Folding
from snapshots.folds import Fold, FoldDefinition, FoldEvent, Folds, check_fold


class Total(Fold[dict[str, Any]]):
    """Sum and count of numbers, and the last ones that it saw."""

    entity_type = "account"
    loads = ("owner.total",)

    def initial(self) -> dict[str, Any]:
        return {"sum": 0, "count": 0, "last": []}

    def apply(self, state: dict[str, Any], event: FoldEvent) -> dict[str, Any]:
        by = event.data["by"]
        if by == "fail":
            raise KeyError(event.data["secret"])
        state["sum"] += by
        state["count"] += 1
        state["last"] = [*state["last"], by][-3:]
        return state


def fold_of(numbers: Iterable[int]) -> dict[str, Any]:
    """What `Total` has to give, reckoned apart from it."""
    given = list(numbers)
    return {"sum": sum(given), "count": len(given), "last": given[-3:]}


def definition_of(fold: type[Fold[Any]]) -> FoldDefinition:
    snapshot_type, types = check_fold(fold, fold.__qualname__)
    return FoldDefinition(
        fold.entity_type, fold.version, "digest", fold.__qualname__, __file__, snapshot_type,
        fold.content_type, types, fold(),
    )  # fmt: skip


def folding_of(*folds: type[Fold[Any]], **settings: Any) -> Folding:
    """Folding by these folds (default: `Total`)."""
    return Folding(Folds(map(definition_of, folds or (Total,))), Decoder, **settings)


async def append(
    journal: StoreJournal,
    entity_id: str,
    *data: dict[str, Any],
    entity_type: str = "account",
    times: Sequence[int] = (),
    snapshot: NewSnapshot | None = None,
) -> int:
    """Appends events in one append, ``times`` in microseconds; the last position."""
    events = tuple(
        NewEvent(
            "Added", orjson.dumps(each), content_type="application/json",
            client_time_us=times[i] if times else 0,
        )
        for i, each in enumerate(data)
    )  # fmt: skip
    entity = EntityAppend(entity_type, entity_id, ANY, snapshot=snapshot)
    return (await journal.append("default", Append((entity,), events))).last_position


def at(year: int, month: int = 1) -> int:
    """Microseconds of a month's begin."""
    return clock.parse_us("at", f"{year:04d}-{month:02d}-01T00:00:00Z")
