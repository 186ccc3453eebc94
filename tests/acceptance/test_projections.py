"""The whole way: import, project, wait, read over HTTP and by SQL, rebuild, switch, replay."""

from __future__ import annotations

import csv
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support import SAMPLE, SAMPLE_EVENTS, Dev

TOP = "docs/news.rst"


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    running = Dev(tmp_path_factory.mktemp("dev") / "folder")
    running.start()
    running.cli("import", SAMPLE).ok()
    yield running
    running.close()


def variable(dev: Dev, name: str) -> str:
    for line in (dev.folder / "everstate.env").read_text().splitlines():
        if line.startswith(f"{name}="):
            return line.partition("=")[2].strip("'")
    raise AssertionError(name)


def read(dev: Dev, path: str) -> bytes:
    """Without any token, as in a first try with curl."""
    url = f"{variable(dev, 'EVERSTATE_ADMIN_URL')}/api/v1/read/{path}"
    with urllib.request.urlopen(url, timeout=30) as response:
        body: bytes = response.read()
    return body


def everything(dev: Dev, table: str, more: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    token = ""
    while True:
        page = json.loads(read(dev, f"{table}?limit=100{more}{token}"))
        rows += page["rows"]
        if page["next"] is None:
            return rows
        token = f"&next={page['next']}"


def test_a_reader_waits_for_its_write_then_reads_it_everywhere_alike(dev: Dev) -> None:
    waited = dev.cli("projection", "wait", "files", "--position", str(SAMPLE_EVENTS), "--json")
    assert waited.ok().json()["position"] == SAMPLE_EVENTS
    page = json.loads(
        read(dev, f"files/files?path=psycopg/{TOP}&min_position={SAMPLE_EVENTS}&timeout=30")
    )
    assert page["position"] == SAMPLE_EVENTS
    assert [row["changes"] for row in page["rows"]] == [306]
    rows = everything(dev, "files/files")
    assert len(rows) == 680
    assert sum(row["changes"] for row in rows) == SAMPLE_EVENTS
    with psycopg.connect(variable(dev, "EVERSTATE_DATABASE_URL")) as connection:
        found = connection.execute("SELECT path, changes, added FROM rm_files.files ORDER BY path")
        assert [(r["path"], r["changes"], r["added"]) for r in rows] == found.fetchall()
    lines = csv.DictReader(io.StringIO(read(dev, "files/files?format=csv&limit=1000").decode()))
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    top = json.loads(read(dev, "files/files?order=-changes&limit=1"))
    assert top["rows"][0]["changes"] == max(row["changes"] for row in rows)


def test_the_list_says_how_each_projection_stands(dev: Dev) -> None:
    rows = dev.cli("projection", "list", "--json").ok().lines()
    assert {"files", "folders"} <= {row["name"] for row in rows}
    for row in rows:
        assert (row["state"], row["version"]) == ("live", 1)
        dev.cli("projection", "wait", row["name"], "--position", str(SAMPLE_EVENTS)).ok()
    assert "files version 1: live, position 12243 of 12243\n" in dev.cli("projection", "list").out


def test_a_rebuild_is_compared_switched_to_and_rolled_back(dev: Dev) -> None:
    before = everything(dev, "files/files")
    ready = dev.cli("projection", "rebuild", "files", "--follow", "--json").ok().json()
    assert (ready["build"], ready["state"], ready["position"]) == (2, "ready", SAMPLE_EVENTS)
    compared = dev.cli("projection", "compare", "files", "--json").ok().json()
    assert compared["equal"] is True
    live = dev.cli("projection", "switch", "files", "--json").ok().json()
    assert (live["build"], live["state"]) == (2, "live")
    assert everything(dev, "files/files") == before
    back = dev.cli("projection", "rollback", "files", "--json").ok().json()
    assert back["build"] == 1
    assert everything(dev, "files/files") == before


def test_a_replay_puts_a_damaged_row_right(dev: Dev) -> None:
    path = f"psycopg/{TOP}"
    page = json.loads(read(dev, f"files/files?path={path}"))
    tables = json.loads(read(dev, "files"))
    assert [table["name"] for table in tables["tables"]].count("files") == 1
    with psycopg.connect(variable(dev, "EVERSTATE_DATABASE_URL"), autocommit=True) as connection:
        row = connection.execute(
            "SELECT schema_name FROM everstate.projection_builds"
            " WHERE name = 'files' AND state = 'live'"
        ).fetchone()
        assert row is not None
        connection.execute(f"UPDATE {row[0]}.files SET changes = 1 WHERE path = %s", [path])
    assert json.loads(read(dev, f"files/files?path={path}"))["rows"] != page["rows"]
    said = dev.cli(
        "projection", "replay", "files", "--entity", f"file/{path}", "--reason", "damaged",
        "--follow", "--json",
    )  # fmt: skip
    assert (said.ok().json()["state"], said.json()["entities"]) == ("done", 1)
    assert json.loads(read(dev, f"files/files?path={path}"))["rows"] == page["rows"]


def test_a_paused_projection_stands_still_and_goes_on(dev: Dev) -> None:
    dev.cli("projection", "pause", "files", "--reason", "a look").ok()
    dev.cli("entity", "append", "file", "new/file", "--event-type", "FileAdded", "--data",
            '{"commit": "0", "added": 3}').ok()  # fmt: skip
    position = str(SAMPLE_EVENTS + 1)
    late = dev.cli("projection", "wait", "files", "--position", position, "--timeout", "0.3")
    assert late.code == 6
    assert "it is paused: a look" in late.sentence()
    assert json.loads(read(dev, "files/files?path=new/file"))["rows"] == []
    dev.cli("projection", "resume", "files").ok()
    dev.cli("projection", "wait", "files", "--position", position).ok()
    assert json.loads(read(dev, "files/files?path=new/file"))["rows"][0]["added"] == 3


def test_what_is_not_there_is_a_sentence(dev: Dev) -> None:
    for arguments in (("show", "nosuch"), ("wait", "nosuch", "--position", "1")):
        said = dev.cli("projection", *arguments)
        assert (said.code, said.sentence()) == (3, "there is no projection 'nosuch'")
    with pytest.raises(urllib.error.HTTPError) as caught:
        read(dev, "files/nosuch")
    assert caught.value.code == 404
    caught.value.close()
