"""The scenarios: what each does, and in which company it is measured."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from benchmarks import appends, delivery, memory, operations, projections, reads
from benchmarks.load import Sample
from benchmarks.workspace import Workspace

Run = Callable[[Workspace, float], Awaitable[Sample]]
Prepare = Callable[[Workspace], Awaitable[None]]


async def _nothing(space: Workspace) -> None:
    """Needs no preparation."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row (and its ``:`` rows, one for each further reference).

    ``references``: label → id; the label "" is the row's own reference. ``needs`` have to run in
    the same round before it. ``once``: a peak, measured in one round without warm-up.
    """

    id: str
    unit: str
    run: Run
    prepare: Prepare = _nothing
    references: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    once: bool = False


_EVENTS = "events/s"

#: Measured together, one after the other in every round: what is compared stands side by side.
GROUPS: tuple[tuple[Scenario, ...], ...] = (
    (
        Scenario(
            "append_stream/256", _EVENTS, appends.stream(256), appends.warm_names,
            {
                "": "pyeventsourcing/8",
                "functions": "pyeventsourcing_functions/8",
                "raw": "raw_append/256",
            },
        ),
        Scenario(
            "raw_append/256", _EVENTS, appends.raw_append, appends.warm_names,
            needs=("append_stream/256",),
        ),
        Scenario("pyeventsourcing/8", _EVENTS, appends.pyeventsourcing(8)),
        Scenario(
            "pyeventsourcing_functions/8", _EVENTS, appends.pyeventsourcing(8, "functions")
        ),
        Scenario(
            "append_unary/64", _EVENTS, appends.unary(64), appends.warm_names,
            {
                "": "pyeventsourcing/8",
                "functions": "pyeventsourcing_functions/8",
                "echo": "echo_unary/64",
            },
        ),
        Scenario("echo_unary/64", "calls/s", appends.echo(64)),
    ),
    (
        Scenario("raw_commit", _EVENTS, appends.raw_commit, appends.warm_names),
        Scenario(
            "append_stream/1", _EVENTS, appends.stream(1), appends.warm_names, {"": "raw_commit"}
        ),
        Scenario("append_unary/1", _EVENTS, appends.unary(1), appends.warm_names),
        Scenario("pyeventsourcing/1", _EVENTS, appends.pyeventsourcing(1)),
        Scenario(
            "pyeventsourcing_functions/1", _EVENTS, appends.pyeventsourcing(1, "functions")
        ),
    ),
    tuple(
        Scenario(f"append_stream/{n}", _EVENTS, appends.stream(n), appends.warm_names)
        for n in (8, 64, 1000)
    ),
    (
        Scenario("read_log", _EVENTS, reads.read_log, reads.fill_log, {"": "raw_read"}),
        Scenario("raw_read", _EVENTS, reads.raw_read, reads.fill_log),
    ),
    (
        Scenario("delivery/1", _EVENTS, delivery.delivery(1), appends.warm_names),
        Scenario("delivery/5", _EVENTS, delivery.delivery(5), appends.warm_names),
        Scenario("delivery/50", _EVENTS, delivery.delivery(50), appends.warm_names),
        Scenario(
            "fanout_node/50", "µs a delivery", delivery.node_cpu,
            references={"": "fanout_bare/50"},
        ),
        Scenario(
            "fanout_bare/50", "µs a delivery", delivery.bare_cpu, needs=("fanout_node/50",)
        ),
    ),
    (
        Scenario(
            "project/upsert", _EVENTS, projections.upsert, projections.fill_log,
            {"": "project/pyeventsourcing"},
        ),
        Scenario(
            "project/upsert_python", _EVENTS, projections.upsert_python, projections.fill_log,
            {"": "project/pyeventsourcing"},
        ),
        Scenario(
            "project/pyeventsourcing", _EVENTS, projections.pyeventsourcing, projections.fill_peer
        ),
    ),
    (
        Scenario(
            "rebuild/2_segments", "s", projections.rebuild, projections.fill_log, once=True
        ),
    ),
    (Scenario("plan_100k", "s", operations.plan, operations.fill_log),),
    (
        Scenario("compact_100k", "s", operations.compact, operations.fill_log, once=True),
        Scenario(
            "compact_appends/undisturbed", "ms", operations.undisturbed, once=True,
            needs=("compact_100k",),
        ),
        Scenario(
            "compact_appends/beside", "ms", operations.beside, once=True,
            references={"": "compact_appends/undisturbed"}, needs=("compact_100k",),
        ),
        Scenario("rss/compact", "MB", operations.worker_rss, once=True, needs=("compact_100k",)),
    ),
    (Scenario("load_entity/100", "loads/s", reads.load_entity, reads.make_entities),),
    (
        Scenario("rss/flood", "MB", memory.flood, once=True),
        Scenario("rss/slow_readers", "MB", memory.slow_readers, reads.fill_log, once=True),
    ),
)  # fmt: skip

SCENARIOS: dict[str, Scenario] = {s.id: s for group in GROUPS for s in group}


def matches(identifier: str, wanted: str) -> bool:
    """Whether ``wanted`` begins the id or one of its parts (between ``_`` and ``/``)."""
    return identifier.startswith(wanted) or any(
        part.startswith(wanted) for part in re.split(r"[_/]", identifier)
    )


def select(wanted: list[str]) -> list[str]:
    """The ids that match any of ``wanted`` (none: all) and what these are compared with.

    Raises:
        ValueError: one of ``wanted`` matches nothing.

    """
    if not wanted:
        return list(SCENARIOS)
    chosen: set[str] = set()
    for name in wanted:
        found = [identifier for identifier in SCENARIOS if matches(identifier, name)]
        if not found:
            raise ValueError(f"no scenario matches {name!r}; there are {', '.join(SCENARIOS)}")
        chosen.update(found)
    for identifier in list(chosen):
        scenario = SCENARIOS[identifier]
        chosen.update(scenario.references.values(), scenario.needs)
    return [identifier for identifier in SCENARIOS if identifier in chosen]
