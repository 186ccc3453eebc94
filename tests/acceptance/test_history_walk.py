"""The whole way of issue 4: import the sample, register a fold for `file`, snapshot and compact
what is older than 2023, look at a file's state then and now, take both back.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journal.model import LoadQuery
from sidecar_api.client import Client
from tests.support import ROOT, SAMPLE, SAMPLE_EVENTS, Dev

TOP = "psycopg/docs/news.rst"
THEN = "2023-01-01T00:00:00Z"
BEFORE = 128
"""So many of the 306 events of `TOP` are from before 2023 …"""
OLD_FILES, OLD_EVENTS = 574, 8_117
"""… and of all files; counted in the sample's lines."""
FOLD = '''
"""The state of a file: its lines, by what was added to it and deleted from it."""

from everstate.folds import Fold


class File(Fold):
    """Lines and changes of a file."""

    entity_type = "file"

    def initial(self):
        return {"lines": 0, "changes": 0, "there": False}

    def apply(self, state, event):
        added, deleted = event.data.get("added") or 0, event.data.get("deleted") or 0
        return {
            "lines": state["lines"] + added - deleted,
            "changes": state["changes"] + 1,
            "there": event.type != "FileDeleted",
        }
'''


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """`everstate dev` with the sample, its projections, and a fold for `file`."""
    folder = tmp_path_factory.mktemp("walk")
    app = folder / "app"
    shutil.copytree(ROOT / "samples" / "repo_history", app)
    (app / "file_fold.py").write_text(FOLD)
    (app / "everstate.toml").write_text(
        'projections = ["folders", "sql/"]\nfolds = ["file_fold"]\n'
    )
    running = Dev(folder / "dev")
    running.env["EVERSTATE_APP"] = str(app)
    running.start()
    running.cli("import", SAMPLE).ok()
    for name in ("files", "folders", "spans"):
        running.cli("projection", "wait", name, "--position", str(SAMPLE_EVENTS)).ok()
    yield running
    running.close()


def loads(dev: Dev, folder: Path, name: str) -> dict[str, str]:
    """What a load gives of every file, as a digest over every byte of it."""

    async def all_of_them() -> dict[str, str]:
        found: dict[str, str] = {}
        rows = dev.cli("entity", "list", "--type", "file", "--json").ok().lines()
        url = variable(dev, "EVERSTATE_URL")
        async with Client(url) as client:
            for row in rows:
                whole = hashlib.sha256()
                query = LoadQuery("file", row["entity_id"])
                async for part in client.load("", query):
                    whole.update(repr(part).encode())
                found[row["entity_id"]] = whole.hexdigest()
        return found

    return asyncio.run(all_of_them())


def variable(dev: Dev, name: str) -> str:
    for line in (dev.folder / "everstate.env").read_text().splitlines():
        if line.startswith(f"{name}="):
            return line.partition("=")[2].strip("'")
    raise AssertionError(name)


def state(dev: Dev, *arguments: str) -> dict[str, Any]:
    row: dict[str, Any] = (
        dev.cli("entity", "state", f"file/{TOP}", *arguments, "--json").ok().json()
    )
    return row


def carried_out(dev: Dev, kind: str) -> dict[str, Any]:
    """The operation after it was planned, read and applied."""
    plan = dev.cli(
        "operation", "plan", kind, "--type", "file", "--at", THEN, "--json"
    ).ok().json()  # fmt: skip
    assert (plan["state"], plan["items"]) == ("planned", OLD_FILES), plan
    apply = (
        "operation", "apply", plan["id"], "--digest", plan["digest"], "--reason", "older than 2023",
        "--wait", "--timeout", "100", "--json",
    )  # fmt: skip
    if kind == "compact":
        assert plan["confirmations"] == ["rebuilds_miss_events"]
        unread = dev.cli(*apply)
        assert (unread.code, unread.error()["code"]) == (4, "CONFLICT")
        assert "rebuilds_miss_events" in unread.error()["message"]
        apply += ("--confirm",)
    done: dict[str, Any] = dev.cli(*apply).ok().json()
    assert (done["state"], done["progress"]["done"]) == ("done", OLD_FILES), done
    return done


def undone(dev: Dev, operation: dict[str, Any]) -> None:
    row = dev.cli(
        "operation", "undo", operation["id"], "--reason", "the walk is over", "--wait",
        "--timeout", "100", "--json",
    ).ok().json()  # fmt: skip
    assert (row["state"], row["progress"]["undone"]) == ("undone", OLD_FILES), row


def test_snapshot_and_compact_what_is_older_than_2023_look_and_take_it_back(
    dev: Dev, tmp_path: Path
) -> None:
    before = loads(dev, tmp_path, "before")
    assert len(before) == 680
    then, now = state(dev, "--at", THEN), state(dev)
    assert (then["sequence"], then["state"]["changes"]) == (BEFORE, BEFORE)
    assert (now["sequence"], now["state"]["changes"]) == (306, 306)

    snapshots = carried_out(dev, "snapshot")
    compaction = carried_out(dev, "compact")
    assert compaction["progress"]["events"] == OLD_EVENTS
    shown = dev.cli("entity", "show", "file", TOP, "--json").ok().json()
    assert (shown["sequence"], shown["floor"]) == (306, BEFORE + 1)
    assert [event["sequence"] for event in shown["events"]] == list(range(BEFORE + 1, 307))
    for was, arguments in ((then, ("--at", THEN)), (now, ())):
        looked = state(dev, *arguments)
        assert (looked["state"], looked["sequence"]) == (was["state"], was["sequence"])
    gone = dev.cli("entity", "state", f"file/{TOP}", "--at", "2022-06-01T00:00:00Z", "--json")
    assert (gone.code, gone.error()["code"]) == (4, "COMPACTED")
    dev.cli("log", "verify").ok()
    assert loads(dev, tmp_path, "compacted") != before

    undone(dev, compaction)
    undone(dev, snapshots)
    assert loads(dev, tmp_path, "after") == before
    assert dev.cli("snapshot", "list", "file", TOP, "--json").out == ""
    shown = dev.cli("entity", "show", "file", TOP, "--json").ok().json()
    assert (shown["floor"], len(shown["events"])) == (1, 306)
    assert state(dev, "--at", "2022-06-01T00:00:00Z")["sequence"] > 0
