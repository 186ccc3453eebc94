"""The sample's read models as a plain fold of its file, written apart from the projections.

Tests hold the projections' tables against these; `tests/unit/test_repo_history.py` holds these
against facts that git recorded.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from tests.support import SAMPLE

Line = Mapping[str, Any]


def lines_of_the_sample() -> list[Line]:
    """The events of the sample as its file has them."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def at(line: Line) -> datetime:
    """The time of the commit, in UTC."""
    return datetime.fromisoformat(line["time"]).astimezone(UTC)


def files(lines: Iterable[Line]) -> dict[str, tuple[int, int, int, bool]]:
    """path → (changes, added, deleted, alive)."""
    by_path: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_path[line["entity_id"]].append(line)
    return {
        path: (
            len(events),
            sum(event["data"].get("added") or 0 for event in events),
            sum(event["data"].get("deleted") or 0 for event in events),
            events[-1]["type"] in {"FileAdded", "FileModified"},
        )
        for path, events in by_path.items()
    }


def spans(lines: Iterable[Line]) -> set[tuple[str, datetime, datetime | None]]:
    """(path, alive_from, alive_to) of every time that a path was there."""
    done: set[tuple[str, datetime, datetime | None]] = set()
    since: dict[str, datetime] = {}
    for line in lines:
        path = line["entity_id"]
        if line["type"] == "FileAdded":
            since.setdefault(path, at(line))
        elif line["type"] != "FileModified":
            done.add((path, since.pop(path), at(line)))
    return done | {(path, begin, None) for path, begin in since.items()}


@dataclass(frozen=True)
class Step:
    """What an event does to the lines of its path; ``lines``: how many the path has afterwards."""

    line: Line
    lines: int
    change: int


def steps(lines: Iterable[Line]) -> Iterator[Step]:
    """The size of every file, event by event."""
    size: dict[str, int] = {}
    left: dict[str, int] = {}  # by a rename, until the new path takes it
    for line in lines:
        path, data = line["entity_id"], line["data"]
        before = size.get(path, 0)
        match line["type"]:
            case "FileAdded":
                size[path] = data["added"] or 0
                if "renamed_from" in data:
                    size[path] += left.pop("psycopg/" + data["renamed_from"])
            case "FileModified":
                size[path] += data["added"] - data["deleted"]
            case "FileRenamed":
                left[path] = size.pop(path)
            case "FileDeleted":
                del size[path]
            case other:
                raise AssertionError(other)
        yield Step(line, size.get(path, 0), size.get(path, 0) - before)
    assert left == {}, "every rename has its new path"


def folder(path: str) -> str:
    """The top folder of a path inside of its repository; a dot: none."""
    parts = path.split("/")
    return parts[1] if len(parts) > 2 else "."


def folders(lines: Iterable[Line]) -> dict[tuple[str, date], tuple[int, int, int, int]]:
    """(folder, month) → (changes, added, deleted, lines at the month's end), without a gap."""
    happened: dict[tuple[str, date], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for step in steps(lines):
        key = folder(step.line["entity_id"]), at(step.line).date().replace(day=1)
        data = step.line["data"]
        figures = (1, data.get("added") or 0, data.get("deleted") or 0, step.change)
        happened[key] = [a + b for a, b in zip(happened[key], figures, strict=True)]
    last = max(month for _, month in happened)
    table: dict[tuple[str, date], tuple[int, int, int, int]] = {}
    for name in {name for name, _ in happened}:
        month, total = min(m for n, m in happened if n == name), 0
        while month <= last:
            changes, added, deleted, change = happened.get((name, month), (0, 0, 0, 0))
            total += change
            table[name, month] = (changes, added, deleted, total)
            month = date(month.year + month.month // 12, month.month % 12 + 1, 1)
    return table
