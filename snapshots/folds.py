"""Folds: how the events of an entity type become a state. Pure data, no I/O.

`everstate.folds` re-exports what users need. The platform knows what it cannot know otherwise from
them: the state at a sequence number, and whether a snapshot equals the events that it covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

import orjson

from journal.model import JSON
from kernel.errors import ConfigurationError, NoFold

State = TypeVar("State")

MAX_NAME = 255
MAX_LOADS = 20
MAX_VERSION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FoldEvent:
    """An event as a fold sees it, in its present shape (upcasters have run).

    ``data`` is the decoded payload (JSON values), None when the content type has no decoder.
    ``time`` is the writer's time of the event, or ``recorded_at`` when it gave none. Both are UTC.
    """

    position: int
    sequence: int
    type: str
    recorded_at: datetime
    time: datetime
    data: Any
    metadata: Mapping[str, Any]
    payload: bytes
    content_type: str
    event_id: str
    schema_version: int


class Fold(Generic[State]):
    """The state of an entity type as a fold of its events. Set ``entity_type``, write `initial` and
    `apply`.

    A fold is a pure function: no I/O, no clock, no randomness, nothing kept between calls. One
    instance serves all entities, in several threads.
    """

    entity_type: ClassVar[str]
    """The entity type; no other fold may name it."""
    version: ClassVar[int] = 1
    """From 1. Other code needs the next one."""
    snapshot_type: ClassVar[str] = ""
    """Type of the snapshots it makes; default ``<entity_type>.v<version>``."""
    content_type: ClassVar[str] = JSON
    """Content type of the snapshots it makes."""
    loads: ClassVar[Sequence[str]] = ()
    """Further types of snapshots that `load` understands: older versions, or the owner's own."""

    def initial(self) -> State:
        """The state before the first event: a new object every time."""
        raise NotImplementedError

    def apply(self, state: State, event: FoldEvent) -> State:
        """The state after an event. It may change ``state`` and return it."""
        raise NotImplementedError

    def to_json(self, state: State) -> Any:
        """The state for people: whatever orjson serialises (dataclasses too)."""
        return state

    def dump(self, state: State) -> bytes:
        """The state as a snapshot's payload: equal states, equal bytes.

        It has all of the state. By default canonical JSON (sorted keys) of it; who writes
        `to_json` writes this too.
        """
        return canonical(state)

    def load(self, payload: bytes, type: str) -> State:  # noqa: A002, ARG002
        """The state of a snapshot of this type (``snapshot_type``, or one of ``loads``).

        Folding on from it must give what folding all events gives. By default the JSON value.
        """
        state: State = orjson.loads(payload)
        return state


def canonical(value: Any) -> bytes:
    """JSON with sorted keys: equal values, equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class FoldDefinition:
    """A fold as registered. ``origin``: module and class; ``file``: where it was written."""

    entity_type: str
    version: int
    digest: str
    origin: str
    file: str
    snapshot_type: str
    content_type: str
    types: tuple[str, ...]
    """Types of the snapshots that it can load; the first is the one it makes."""
    fold: Fold[Any] = field(compare=False, repr=False)

    @property
    def title(self) -> str:
        """For messages."""
        return f"fold of {self.entity_type} version {self.version}"


class Folds:
    """The folds that a process has loaded, by entity type.

    ``problem``: why there are none although the user's file names some; empty: nothing is wrong.
    ``refused``: by entity type, why a fold may not be used here.
    """

    def __init__(
        self,
        definitions: Iterable[FoldDefinition] = (),
        *,
        problem: str = "",
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self.problem = problem
        self.refused = dict(refused or {})
        self._all = {each.entity_type: each for each in definitions}

    def __iter__(self) -> Iterator[FoldDefinition]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def get(self, entity_type: str) -> FoldDefinition | None:
        """The fold of an entity type that may be used; None: there is none."""
        return None if entity_type in self.refused else self._all.get(entity_type)

    def named(self, entity_type: str) -> FoldDefinition:
        """As `get`.

        Raises:
            NoFold: there is none; says why.

        """
        found = self.get(entity_type)
        if found is None:
            why = self.refused.get(entity_type) or self.problem
            raise NoFold(
                f"there is no fold of entity type {entity_type!r}" + (f": {why}" if why else "")
            )
        return found


def check_fold(kind: type[Fold[Any]], origin: str) -> tuple[str, tuple[str, ...]]:
    """(snapshot type, all types that it loads) of a fold class whose attributes are in range.

    Raises:
        ConfigurationError: names the class, the attribute and what is wrong with it.

    """

    def refuse(problem: str) -> ConfigurationError:
        return ConfigurationError(f"{origin}: {problem}")

    def name(attribute: str, value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME or not value.isprintable():
            raise refuse(
                f"{attribute}: {value!r:.60} is not a name of 1 to {MAX_NAME} printable characters"
            )
        return value

    entity_type = name("entity_type", kind.entity_type)
    version = kind.version
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION:
        raise refuse(f"version: {version!r:.60} is not a number from 1 to {MAX_VERSION}")
    for method in ("initial", "apply"):
        if getattr(kind, method) is getattr(Fold, method):
            raise refuse(f"{method}: is not written")
    loads = kind.loads
    if isinstance(loads, str) or not isinstance(loads, Sequence):
        raise refuse("loads: is not a list of names (a comma is missing?)")
    if len(loads) > MAX_LOADS:
        raise refuse(f"loads: {len(loads)} are more than {MAX_LOADS}")
    own = name("snapshot_type", kind.snapshot_type or f"{entity_type}.v{version}")
    name("content_type", kind.content_type)
    return own, tuple(dict.fromkeys([own, *(name("loads", each) for each in loads)]))


def check_snapshots(fold: Fold[Any], origin: str) -> None:
    """That nothing of a state is lost by the defaults of `Fold.dump` and `Fold.load`.

    Raises:
        ConfigurationError: names the class and the method to write.

    """
    kind = type(fold)
    if kind.to_json is not Fold.to_json and kind.dump is Fold.dump:
        raise ConfigurationError(
            f"{origin}: dump: is not written, and to_json is: what people see may not be all of the"
            " state; write dump (and load) as well"
        )
    if kind.load is not Fold.load:
        return
    try:
        state = fold.initial()
    except Exception as error:
        raise ConfigurationError(f"{origin}: initial: {type(error).__name__}") from error
    if not _plain(state):
        raise ConfigurationError(
            f"{origin}: load: is not written, and a state ({type(state).__name__}) is not what JSON"
            " gives (dict with texts as keys, list, str, int, float, bool, None)"
        )


def _plain(value: object) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _plain(each) for key, each in value.items())
    if type(value) is list:
        return all(map(_plain, value))
    return value is None or type(value) in {str, int, float, bool}
