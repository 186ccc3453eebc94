"""The sample's fold of a file against folds of the same lines that were written apart from it."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from datetime import UTC
from types import ModuleType
from typing import Any

from kernel import usercode
from snapshots.fold_registry import load
from snapshots.folds import FoldEvent
from tests import repo_history as history
from tests.support import ROOT, SAMPLE_ENTITIES

FOLDER = ROOT / "samples" / "repo_history"
LINES = history.lines_of_the_sample()


def sample() -> ModuleType:
    """The sample's module, which is no package of ours."""
    spec = importlib.util.spec_from_file_location(
        "sample_repo_history_folds", FOLDER / "repo_history_folds.py"
    )
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


FOLD = sample().FileFold()


def event(line: history.Line, sequence: int) -> FoldEvent:
    moment = history.at(line)
    return FoldEvent(
        sequence, sequence, line["type"], moment, moment, line["data"], {}, b"", "application/json",
        "", 0,
    )  # fmt: skip


def test_the_states_are_what_other_folds_of_the_lines_say() -> None:
    states: dict[str, Any] = defaultdict(FOLD.initial)
    came: set[str] = set()  # by a rename: their lines are in another path's history
    for number, step in enumerate(history.steps(LINES), 1):
        path, data = step.line["entity_id"], step.line["data"]
        state = states[path] = FOLD.apply(states[path], event(step.line, number))
        if step.line["type"] == "FileAdded":
            (came.add if "renamed_from" in data else came.discard)(path)
        if path in came and state.alive:
            assert state.lines is None
        else:
            assert state.lines == step.lines, (path, number)
        assert (state.last_commit, state.last_time) == (
            data["commit"], history.at(step.line).astimezone(UTC).isoformat(),
        )  # fmt: skip
    rows = history.files(LINES)
    assert len(states) == len(rows) == SAMPLE_ENTITIES
    for path, (changes, added, deleted, alive) in rows.items():
        state = states[path]
        assert (state.changes, state.added, state.deleted, state.alive) == (
            changes, added, deleted, alive,
        ), path  # fmt: skip
        assert (state.renamed_to is not None) <= (not alive)
    first = {line["entity_id"]: line["data"]["commit"] for line in reversed(LINES)}
    assert {path: state.first_commit for path, state in states.items()} == first


def test_going_on_from_a_snapshot_gives_the_same() -> None:
    chosen = [line for line in LINES if line["entity_id"] == "psycopg/docs/news.rst"]
    assert len(chosen) == 306
    state, other = FOLD.initial(), FOLD.initial()
    for number, line in enumerate(chosen, 1):
        state = FOLD.apply(state, event(line, number))
        other = FOLD.load(FOLD.dump(FOLD.apply(other, event(line, number))), "file.v1")
        assert FOLD.dump(other) == FOLD.dump(state)


def test_the_sample_names_it() -> None:
    code = usercode.find(FOLDER)
    assert code is not None
    path, before = list(sys.path), set(sys.modules)
    try:
        [fold] = load(code)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if name == "repo_history_folds":
                del sys.modules[name]
    assert (fold.entity_type, fold.version, fold.snapshot_type) == ("file", 1, "file.v1")
