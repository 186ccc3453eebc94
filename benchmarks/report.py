"""Rows, the table, and the two files of benchmarks/results/."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Sample
from benchmarks.rows import Row
from benchmarks.scenarios import SCENARIOS
from benchmarks.targets import TARGETS

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What all rows of a run share."""

    run: str
    commit: str
    machine: str


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 3) if known else None


def rows_of(rounds: Mapping[str, Sequence[Sample]], facts: RunFacts) -> list[Row]:
    """The rows of a run: medians of the rounds, ratios of medians."""
    values = {
        identifier: statistics.median(sample.value for sample in samples)
        for identifier, samples in rounds.items()
    }
    rows = []
    for identifier, samples in rounds.items():
        scenario = SCENARIOS[identifier]
        references: Mapping[str, str | None] = scenario.references or {"": None}
        for label, reference in references.items():
            base = values.get(reference) if reference else None
            rows.append(
                Row(
                    id=f"{identifier}:{label}" if label else identifier,
                    value=round(values[identifier], 1),
                    unit=scenario.unit,
                    p50_ms=_median([sample.p50_ms for sample in samples]),
                    p99_ms=_median([sample.p99_ms for sample in samples]),
                    reference=reference,
                    ratio=round(values[identifier] / base, 3) if base else None,
                    run=facts.run,
                    commit=facts.commit,
                    machine=facts.machine,
                )
            )
        rows += [
            Row(
                f"{identifier}:{name}",
                round(statistics.median(sample.extra[name] for sample in samples), 1),
                scenario.unit, None, None, None, None, facts.run, facts.commit, facts.machine,
            )
            for name in samples[0].extra
        ]  # fmt: skip
    return rows


def load(path: Path) -> list[Row]:
    """The rows of an earlier run; none when there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [Row.from_json(item) for item in found]


def merge(old: Sequence[Row], new: Sequence[Row], ran: Sequence[str]) -> list[Row]:
    """``new`` and those of ``old`` that belong to scenarios that did not run, in our order.

    A scenario that ran and failed loses its old row: it no longer says anything.
    """
    order = list(SCENARIOS)
    kept = [row for row in old if _scenario(row) in order and _scenario(row) not in ran]
    return sorted([*kept, *new], key=lambda row: order.index(_scenario(row)))


def _scenario(row: Row) -> str:
    return row.id.partition(":")[0]


def verdicts(rows: Sequence[Row]) -> dict[str, list[tuple[str, bool | None]]]:
    """By row: its targets in words, and whether each is met (None: cannot be told)."""
    by_id = {row.id: row for row in rows}
    found: dict[str, list[tuple[str, bool | None]]] = {}
    for target in TARGETS:
        if target.row in by_id:
            met = target.check(by_id[target.row], by_id)
            found.setdefault(target.row, []).append((target.words, met))
    return found


_MET = {True: "met", False: "**not met**", None: "not measured"}


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}f}"


def table(rows: Sequence[Row]) -> str:
    """The Markdown table."""
    judged = verdicts(rows)
    lines = [
        "| id | value | unit | p50 ms | p99 ms | reference | ratio | target | met |",
        "|---|---:|---|---:|---:|---|---:|---|---|",
    ]
    for row in rows:
        targets = judged.get(row.id, [])
        cells = [
            row.id, _number(row.value), row.unit, _number(row.p50_ms), _number(row.p99_ms),
            row.reference or "", _number(row.ratio), "; ".join(words for words, _ in targets),
            "; ".join(_MET[met] for _, met in targets),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def document(
    rows: Sequence[Row],
    facts: RunFacts,
    rounds: Mapping[str, Sequence[Sample]],
    costs: Mapping[str, Sequence[str]],
    failures: Mapping[str, str],
) -> str:
    """benchmarks/results/latest.md."""
    runs = sorted({(row.run, row.commit, row.machine) for row in rows})
    parts = ["# Benchmark results", "", table(rows), ""]
    parts += [f"- Run {run}, commit {commit}: {machine}." for run, commit, machine in runs]
    if len(runs) > 1:
        members = {run: [row.id for row in rows if row.run == run] for run, _, _ in runs}
        parts += [""] + [f"Of run {run}: {', '.join(ids)}." for run, ids in members.items()]
    if failures:
        parts += ["", "Could not run:", ""]
        parts += [f"- {identifier}: {reason}" for identifier, reason in failures.items()]
    parts += [
        "",
        f"## Rounds of run {facts.run}",
        "",
        "| id | rounds | newest round |",
        "|---|---|---|",
    ]
    for identifier, samples in rounds.items():
        values = ", ".join(_number(sample.value) for sample in samples)
        words = "; ".join(word for word in (samples[-1].note, costs[identifier][-1]) if word)
        parts.append(f"| {identifier} | {values} | {words} |")
    return "\n".join(parts) + "\n"


def write(rows: Sequence[Row], text: str, folder: Path) -> None:
    """Writes both files."""
    folder.mkdir(parents=True, exist_ok=True)
    body = json.dumps([row.as_json() for row in rows], indent=1, ensure_ascii=False)
    (folder / "latest.json").write_text(body + "\n", encoding="utf-8")
    (folder / "latest.md").write_text(text, encoding="utf-8")
