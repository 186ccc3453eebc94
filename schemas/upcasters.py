"""Upcasters: old shapes of events become the present one while they are read, never where they are
stored.

An event's shape is named by its type and its schema version (0: the writer gave none). An upcaster
takes the data of exactly one shape to the next:

    from everstate.upcasters import upcaster

    @upcaster("ItemAdded", from_version=1)          # to version 2 of the same type
    def with_quantity(data):
        return data | {"quantity": 1}

    @upcaster("ItemPut", from_version=0, to="ItemAdded", to_version=1)
    def renamed(data):
        return {"sku": data["article"]}

They are chained until none applies. Where the chain goes is known from the declarations alone, so
a circle is found before any event is read. An upcaster is a pure function of the decoded data: no
I/O, no clock; it may change the value it is given. One event stays one event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, NamedTuple

import orjson

from kernel.errors import ConfigurationError, Undecodable
from kernel.usercode import UserCode, load, place

MAX_VERSION: Final = (1 << 31) - 1


class Shape(NamedTuple):
    """A type at a schema version."""

    type: str
    version: int

    def __str__(self) -> str:
        return f"{self.type} version {self.version}"


@dataclass(frozen=True, slots=True)
class Upcaster:
    """A declared upcaster; calling it calls the function."""

    source: Shape
    target: Shape
    function: Callable[[Any], Any]

    @property
    def name(self) -> str:
        """``module.function``."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def __call__(self, data: Any) -> Any:
        return self.function(data)


def upcaster(
    event_type: str, *, from_version: int = 0, to: str = "", to_version: int | None = None
) -> Callable[[Callable[[Any], Any]], Upcaster]:
    """Declares a function (data → data) as the upcaster of one shape.

    ``to``: the new type, default the same. ``to_version``: default the next version.

    Raises:
        ConfigurationError: a name is empty, a version is out of range, or nothing would change.

    """
    source = Shape(event_type, from_version)
    target = Shape(to or event_type, from_version + 1 if to_version is None else to_version)
    for shape in (source, target):
        if not isinstance(shape.type, str) or not shape.type:
            raise ConfigurationError("upcaster: the event type is empty")
        if not isinstance(shape.version, int) or not 0 <= shape.version <= MAX_VERSION:
            raise ConfigurationError(
                f"upcaster of {event_type}: version {shape.version} is not within 0..{MAX_VERSION}"
            )
    if source == target:
        raise ConfigurationError(f"upcaster of {source}: leads to the same shape")

    def declare(function: Callable[[Any], Any]) -> Upcaster:
        if not callable(function):
            raise ConfigurationError(f"upcaster of {source}: is not a function")
        return Upcaster(source, target, function)

    return declare


class Upcasters:
    """All upcasters of a program, chained.

    Raises:
        ConfigurationError: two upcasters for one shape, or a circle; the message names both.

    """

    def __init__(self, upcasters: Iterable[Upcaster] = ()) -> None:
        steps: dict[Shape, Upcaster] = {}
        for item in upcasters:
            other = steps.setdefault(item.source, item)
            if other is not item:
                raise ConfigurationError(
                    f"upcasters: {other.name} and {item.name} are both for {item.source}"
                )
        self._chains: Mapping[Shape, Sequence[Upcaster]] = {
            shape: _chain(shape, steps) for shape in steps
        }

    def __len__(self) -> int:
        return len(self._chains)

    def apply(self, event_type: str, version: int, data: Any) -> tuple[Shape, Any]:
        """The present shape of an event and its data in it.

        Raises:
            Undecodable: an upcaster failed, or returned what is no JSON value. The message names
                upcaster, shape and place, and nothing of the data.

        """
        shape = Shape(event_type, version)
        for step in self._chains.get(shape, ()):
            try:
                data = step.function(data)
            except Exception as error:
                # Its text may hold data: the class and the line have to do.
                where = place(error)
                raise Undecodable(
                    f"{shape}: the upcaster {step.name} raised {type(error).__name__}"
                    + (f" at {where}" if where else "")
                ) from error
            try:
                # What JSON makes of it: SQL, Python and the command line then see the same.
                data = orjson.loads(orjson.dumps(data))
            except (orjson.JSONEncodeError, RecursionError):
                raise Undecodable(
                    f"{shape}: the upcaster {step.name} returned what is no JSON value"
                ) from None
            shape = step.target
        return shape, data

    def target(self, event_type: str, version: int) -> Shape:
        """The present shape of a stored one."""
        shape = Shape(event_type, version)
        chain = self._chains.get(shape)
        return chain[-1].target if chain else shape

    def sources(self, types: Iterable[str]) -> tuple[str, ...]:
        """The stored types that are, or may become, one of ``types``: what a reader has to ask for.

        Sorted; nothing for nothing (a reader of all types asks for all).
        """
        wanted = set(types)
        more = {s.type for s, chain in self._chains.items() if chain[-1].target.type in wanted}
        return tuple(sorted(wanted | more))


def _chain(shape: Shape, steps: Mapping[Shape, Upcaster]) -> tuple[Upcaster, ...]:
    chain: list[Upcaster] = []
    seen = {shape}
    while (step := steps.get(shape)) is not None:
        chain.append(step)
        shape = step.target
        if shape in seen:
            names = ", ".join(item.name for item in chain)
            raise ConfigurationError(f"upcasters go in a circle at {shape}: {names}")
        seen.add(shape)
    return tuple(chain)


def collect(modules: Iterable[ModuleType]) -> list[Upcaster]:
    """The upcasters that are attributes of the modules, in order, each once."""
    found: dict[int, Upcaster] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Upcaster):
                found.setdefault(id(value), value)
    return list(found.values())


def from_user_code(code: UserCode | None) -> Upcasters:
    """The upcasters of the modules that the user's file names.

    Raises:
        ConfigurationError: an entry is a path, a module cannot be imported or declares none, two
            are for one shape, or they go in a circle.

    """
    if code is None:
        return Upcasters()
    found: list[Upcaster] = []
    modules = load(code, "upcasters", code.upcasters)
    if len(modules) != len(code.upcasters):
        raise ConfigurationError(f"{code.file}: upcasters: name modules, not paths")
    for module in modules:
        more = collect([module])
        if not more:
            raise ConfigurationError(
                f"{code.file}: upcasters: {module.__name__} declares no @upcaster"
            )
        found += [item for item in more if item not in found]
    try:
        return Upcasters(found)
    except ConfigurationError as error:
        raise ConfigurationError(f"{code.file}: {error.message}") from None
