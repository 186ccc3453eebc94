"""What has to be reached. The only place that knows; the report computes met or not met from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.rows import Row

Rows = Mapping[str, Row]
Check = Callable[[Row, Rows], bool | None]
"""True: met. None: cannot be told, as what it needs was not measured in the same run."""


@dataclass(frozen=True, slots=True)
class Target:
    """One condition on one row."""

    row: str
    words: str
    check: Check


def _ratio(row: str, least: float, words: str) -> Target:
    return Target(row, words, lambda r, _: None if r.ratio is None else r.ratio >= least)


def _p50_near(row: str, other: str, ms: float) -> Target:
    def check(r: Row, rows: Rows) -> bool | None:
        base = rows.get(other)
        if base is None or base.run != r.run or base.p50_ms is None or r.p50_ms is None:
            return None
        return r.p50_ms <= base.p50_ms + ms

    return Target(row, f"p50 ≤ p50 of {other} + {ms:g} ms", check)


def _at_most(row: str, most: float, unit: str) -> Target:
    return Target(row, f"< {most:g} {unit}", lambda r, _: r.value < most)


def _latency(row: str, p50: float, p99: float) -> tuple[Target, ...]:
    return (
        Target(
            row, f"p50 ≤ {p50:g} ms", lambda r, _: None if r.p50_ms is None else r.p50_ms <= p50
        ),
        Target(
            row, f"p99 ≤ {p99:g} ms", lambda r, _: None if r.p99_ms is None else r.p99_ms <= p99
        ),
    )


TARGETS: tuple[Target, ...] = (
    _ratio("append_stream/256", 10.0, "≥ 10 × pyeventsourcing/8"),
    _ratio("append_stream/256:raw", 0.5, "≥ 50 % of raw_append/256"),
    _ratio("append_unary/64", 1.5, "≥ 1.5 × pyeventsourcing/8"),
    _ratio("append_unary/64:echo", 0.4, "≥ 40 % of echo_unary/64"),
    _p50_near("append_stream/1", "raw_commit", 2.0),
    Target("read_log", "≥ 100,000 events/s", lambda r, _: r.value >= 100_000),
    _ratio("read_log", 0.35, "≥ 35 % of raw_read"),
    Target(
        "load_entity/100",
        "p50 ≤ 5 ms",
        lambda r, _: None if r.p50_ms is None else r.p50_ms <= 5.0,
    ),
    *_latency("delivery/1", 5, 25),
    *_latency("delivery/5", 5, 25),
    Target(
        "delivery/50", "p99 ≤ 250 ms", lambda r, _: None if r.p99_ms is None else r.p99_ms <= 250
    ),
    Target(
        "fanout_node/50",
        "≤ 1.5 × fanout_bare/50",
        lambda r, _: None if r.ratio is None else r.ratio <= 1.5,
    ),
    Target("project/upsert", "≥ 10,000 events/s", lambda r, _: r.value >= 10_000),
    _ratio("project/upsert", 5.0, "≥ 5 × project/pyeventsourcing"),
    Target("project/upsert_python", "≥ 10,000 events/s", lambda r, _: r.value >= 10_000),
    _ratio("project/upsert_python", 5.0, "≥ 5 × project/pyeventsourcing"),
    Target("rebuild/2_segments", "≤ 90 s", lambda r, _: r.value <= 90),
    _at_most("plan_100k", 2, "s"),
    _at_most("compact_100k", 30, "s"),
    Target(
        "compact_appends/beside",
        "p99 ≤ 1.5 × compact_appends/undisturbed",
        lambda r, _: None if r.ratio is None else r.ratio <= 1.5,
    ),
    _at_most("rss/compact", 300, "MB"),
    _at_most("rss/flood", 250, "MB"),
    _at_most("rss/slow_readers", 250, "MB"),
)
