"""The sample as one meets it: dev, the import, read models over HTTP and SQL, the plot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import repo_history as history
from tests.support import (
    ROOT,
    SAMPLE,
    SAMPLE_EVENTS,
    Dev,
    clean_env,
    descendants,
    eventually,
    start,
)

LINES = history.lines_of_the_sample()


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """`everstate dev` with the sample imported, whose worker was killed in the middle of it."""
    made = Dev(tmp_path_factory.mktemp("sample") / "dev")
    try:
        made.start()
        projections = made.cli("projection", "list", "--json").ok().lines()
        assert {(row["name"], row["state"]) for row in projections} == {
            ("files", "live"), ("folders", "live"), ("spans", "live")
        }  # fmt: skip
        env = clean_env(EVERSTATE_DEV_DIR=made.folder)
        with start("import", SAMPLE, "--rate", "3000", env=env) as importing:
            eventually(lambda: position(made, "folders") > 2_000, "the projections are under way")
            before = worker(made)
            assert position(made, "folders") < SAMPLE_EVENTS, "it is killed in the middle"
            os.kill(before, signal.SIGKILL)
            assert importing.end(timeout=60) == 0
        for name in ("files", "folders", "spans"):
            made.cli("projection", "wait", name, "--position", str(SAMPLE_EVENTS)).ok()
        assert worker(made) != before
        yield made
    finally:
        made.close()


def worker(dev: Dev) -> int:
    """The process of the worker."""
    assert dev.running is not None
    found = [
        pid
        for pid in descendants(dev.running.pid)
        if b"everstate\0work\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(found) == 1, found
    return found[0]


def variables(dev: Dev) -> dict[str, str]:
    lines = (dev.folder / "everstate.env").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if not line.startswith("#"))
    return {name: value.strip("'") for name, value in pairs}


def get(dev: Dev, path: str, **query: object) -> Any:
    url = f"{variables(dev)['EVERSTATE_ADMIN_URL']}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def position(dev: Dev, name: str) -> int:
    return dev.cli("projection", "show", name, "--json").ok().json()["position"]


def read(dev: Dev, projection: str, **query: object) -> list[dict[str, Any]]:
    """All rows of a read model's table, page by page over HTTP."""
    found: list[dict[str, Any]] = []
    more: dict[str, object] = {}
    while True:
        page = get(
            dev, f"/api/v1/read/{projection}/{projection}",
            limit=500, min_position=SAMPLE_EVENTS, **query, **more,
        )  # fmt: skip
        assert page["position"] == SAMPLE_EVENTS
        found += page["rows"]
        if page["next"] is None:
            return found
        more = {"next": page["next"]}


def rows(dev: Dev, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(variables(dev)["EVERSTATE_DATABASE_URL"]) as connection:
        return connection.execute(statement).fetchall()


def moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text is not None else None


def test_files_equal_the_fold_over_http_and_sql(dev: Dev) -> None:
    fold = history.files(LINES)
    found = rows(dev, "SELECT path, changes, added, deleted, alive FROM rm_files.files")
    assert len(found) == len(fold)
    assert {row[0]: row[1:] for row in found} == fold
    over_http = {
        row["path"]: (row["changes"], row["added"], row["deleted"], row["alive"])
        for row in read(dev, "files", order="path")
    }
    assert over_http == fold
    alive = read(dev, "files", alive="true")
    assert {row["path"] for row in alive} == {path for path, row in fold.items() if row[3]}


def test_spans_equal_the_fold_and_give_the_files_of_any_date(dev: Dev) -> None:
    fold = history.spans(LINES)
    found = rows(dev, "SELECT path, alive_from, alive_to FROM rm_spans.spans")
    assert len(found) == len(fold)
    assert {(p, a.astimezone(UTC), b and b.astimezone(UTC)) for p, a, b in found} == fold
    over_http = {
        (row["path"], moment(row["alive_from"]), moment(row["alive_to"]))
        for row in read(dev, "spans")
    }
    assert over_http == fold
    day = datetime(2022, 1, 1, tzinfo=UTC)
    there = {path for path, a, b in fold if a <= day and (b is None or b > day)}
    (readme,) = [
        block
        for block in (SAMPLE.parent / "README.md").read_text().split("```")
        if block.startswith("sql\n")
    ]
    assert {path for (path,) in rows(dev, readme.removeprefix("sql\n"))} == there
    assert len(there) > 100


def test_folders_equal_the_fold_over_http_and_sql(dev: Dev) -> None:
    fold = history.folders(LINES)
    found = rows(
        dev, "SELECT folder, month, changes, added, deleted, lines FROM rm_folders.folders"
    )
    assert {(row[0], row[1]): row[2:] for row in found} == fold
    over_http = {
        (row["folder"], date.fromisoformat(row["month"])): (
            row["changes"], row["added"], row["deleted"], row["lines"]
        )
        for row in read(dev, "folders", order="folder,month")
    }  # fmt: skip
    assert over_http == fold


def test_the_plot_is_drawn_from_the_running_dev(dev: Dev, tmp_path: Path) -> None:
    target = tmp_path / "folders.svg"
    said = subprocess.run(
        [sys.executable, SAMPLE.parent / "plot.py", target],
        env=clean_env(EVERSTATE_DEV_DIR=dev.folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"{target}: {len(history.folders(LINES))} rows")
    texts = {element.text for element in ET.parse(target).iter()}
    assert {"tests", "psycopg_pool", "all: 90,936 lines"} <= texts


def test_a_damaged_row_is_put_right_by_a_replay_and_a_sum_over_files_is_refused(dev: Dev) -> None:
    path = "psycopg/docs/news.rst"
    with psycopg.connect(variables(dev)["EVERSTATE_DATABASE_URL"]) as connection:
        connection.execute("UPDATE rm_files_v1.files SET changes = 1, alive = false")
    replay = dev.cli(
        "projection",
        "replay",
        "files",
        "--entity",
        f"file/{path}",
        "--reason",
        "a test",
        "--follow",
    ).ok()
    assert replay.out.endswith("done: 1 entities, 306 events\n")
    fold = history.files(LINES)
    found = {row["path"]: row for row in read(dev, "files")}
    assert (found[path]["changes"], found[path]["alive"]) == (306, True)
    assert sum(row["changes"] == 306 for row in found.values()) == 1
    dev.cli("projection", "replay", "files", "--type", "file", "--reason", "a test", "-f").ok()
    assert dev.cli("projection", "replays", "files", "--limit", "1").ok().out.split()[1:4] == [
        "done:", "680", "entities,"
    ]  # fmt: skip
    found = {row["path"]: row for row in read(dev, "files")}
    assert {path: (row["changes"], row["alive"]) for path, row in found.items()} == {
        path: (row[0], row[3]) for path, row in fold.items()
    }
    refused = dev.cli("projection", "replay", "folders", "--type", "file", "--reason", "x")
    assert refused.code == 4
    assert "does not say how one is deleted" in refused.sentence()


def test_a_rebuild_of_the_sample_compares_equal_and_goes_live(dev: Dev) -> None:
    dev.cli("projection", "rebuild", "folders").ok()

    def state() -> str:
        shown = dev.cli("projection", "show", "folders", "--json").ok().json()
        return next(row["state"] for row in shown["builds"] if row["build"] == 2)

    eventually(lambda: state() == "ready", "the new build has caught up", 60)
    dev.cli("projection", "compare", "folders").ok()
    dev.cli("projection", "switch", "folders").ok()
    shown = dev.cli("projection", "show", "folders", "--json").ok().json()
    assert (shown["live_version"], shown["live_build"]) == (1, 2)
    found = rows(
        dev, "SELECT folder, month, changes, added, deleted, lines FROM rm_folders.folders"
    )
    assert {(row[0], row[1]): row[2:] for row in found} == history.folders(LINES)
    dev.cli("projection", "rollback", "folders").ok()
    assert dev.cli("projection", "show", "folders", "--json").ok().json()["live_build"] == 1


def states(path: str) -> list[tuple[datetime, dict[str, Any]]]:
    """(time, what is told of it) of a file after each of its events."""
    found: list[tuple[datetime, dict[str, Any]]] = []
    for step in history.steps(LINES):
        if step.line["entity_id"] == path:
            what = {"lines": step.lines, "last_commit": step.line["data"]["commit"]}
            found.append((history.at(step.line), what | {"changes": len(found) + 1}))
    return found


def test_a_files_state_is_shown_now_and_then(dev: Dev) -> None:
    path = "psycopg/docs/news.rst"
    told = states(path)
    then = datetime(2023, 1, 1, tzinfo=UTC)
    until = next(i for i, (moment, _) in enumerate(told) if moment >= then)
    assert 0 < until < len(told)
    for options, expected, sequence in (
        ((), told[-1][1], len(told)),
        (("--sequence", "17"), told[16][1], 17),
        (("--at", "2023-01-01T00:00:00Z"), told[until - 1][1], until),
    ):
        said = dev.cli("entity", "state", f"file/{path}", *options, "--json").ok().json()
        assert said["sequence"] == sequence
        assert {key: said["state"][key] for key in expected} == expected
    text = dev.cli("entity", "state", f"file/{path}").ok().out
    assert text.startswith(f"file/{path}: sequence 306, ")
    assert (
        dev.cli("entity", "verify", f"file/{path}")
        .ok()
        .out.endswith(
            "306 events folded, no snapshot to load, 0 snapshots agree, 0 differ,"
            " 0 are not the fold's\n"
        )
    )
    assert dev.cli("entity", "state", "file/nosuch").code == 3
    [fold] = dev.cli("fold", "list", "--json").ok().lines()
    assert (fold["entity_type"], fold["version"], fold["loaded"]) == ("file", 1, True)
