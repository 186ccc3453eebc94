"""The first page of the README as a test: the real commands, from an empty folder on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.devdb_host import servers_of
from tests.support import (
    SAMPLE,
    SAMPLE_ENTITIES,
    SAMPLE_EVENTS,
    Dev,
    Said,
    alive,
    clean_env,
    eventually,
    start,
    without_recorded_at,
)

NEWS = ("file", "psycopg/docs/news.rst")


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    made = Dev(tmp_path / "dev")
    yield made
    made.close()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dev, list[bytes]]]:
    """A first import that nothing disturbed, and what it exports."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    dev = Dev(folder / "dev")
    dev.start()
    said = dev.cli("import", SAMPLE).ok()
    assert said.out == f"{SAMPLE_EVENTS} events of {SAMPLE_ENTITIES} entities are in\n"
    yield dev, exported(dev, folder)
    dev.close()


def exported(dev: Dev, folder: Path) -> list[bytes]:
    target = folder / "export.jsonl.gz"
    dev.cli("export", target).ok()
    return without_recorded_at(target)


def assert_the_log_is_whole(dev: Dev) -> None:
    show = dev.cli("entity", "show", *NEWS).ok()
    head, *events = show.out.splitlines()
    assert head.startswith("file/psycopg/docs/news.rst: sequence 306, 306 events, readable from 1")
    assert len(events) == 306
    verify = dev.cli("log", "verify").ok()
    assert verify.out == (
        f"ok: {SAMPLE_EVENTS} events at positions 1..{SAMPLE_EVENTS}, "
        f"{SAMPLE_ENTITIES} entities, no hole\n"
    )
    log = dev.cli("log", "show", "--json").ok().json()
    assert (log["head"], log["entities"]) == (SAMPLE_EVENTS, SAMPLE_ENTITIES)


def test_the_first_page_of_the_readme(uninterrupted: tuple[Dev, list[bytes]]) -> None:
    dev, lines = uninterrupted
    assert_the_log_is_whole(dev)
    assert len(lines) == SAMPLE_EVENTS
    first = json.loads(lines[0])
    assert (first["entity_id"], first["sequence"], first["position"]) == (
        "psycopg/.gitignore",
        1,
        1,
    )


def test_a_second_start_finds_the_data_of_the_first_and_a_second_import_adds_nothing(
    uninterrupted: tuple[Dev, list[bytes]], tmp_path: Path
) -> None:
    dev, lines = uninterrupted
    assert dev.running is not None
    pids = dev.pids()
    assert dev.running.end(signal.SIGINT) == 130
    assert not any(map(alive, pids))
    dev.start()
    assert_the_log_is_whole(dev)
    again = dev.cli("import", SAMPLE, "--json").ok().json()
    assert (again["events"], again["appended"]) == (SAMPLE_EVENTS, 0)
    assert again["duplicates"] == SAMPLE_EVENTS
    assert exported(dev, tmp_path) == lines


def test_kill_9_of_everything_in_the_middle_of_an_import_and_a_second_import_give_the_same_log(
    dev: Dev, uninterrupted: tuple[Dev, list[bytes]], tmp_path: Path
) -> None:
    first = dev.start()
    pids = dev.pids()
    assert len(pids) > 4, "the supervisor, the node, the postmaster and its children"
    env = clean_env(EVERSTATE_DEV_DIR=dev.folder)
    with start("import", SAMPLE, "--rate", "3000", env=env) as importing:

        def head() -> int:
            return dev.cli("log", "show", "--json").ok().json()["head"]

        eventually(lambda: head() >= 2_000, "the import is under way")
        dev.kill_everything()
        assert not servers_of(dev.folder / "postgresql")
        # The importer is no part of the killed: it gives up in a sentence and says that it did not
        # reach the node.
        assert importing.end(timeout=30) == 5
        assert "Traceback" not in importing.text
    assert first.process.returncode == -signal.SIGKILL

    dev.start()
    before = dev.cli("log", "show", "--json").ok().json()["head"]
    assert 2_000 <= before < SAMPLE_EVENTS, "it was killed in the middle"
    assert dev.cli("log", "verify").ok().out.startswith(f"ok: {before} events")

    said: Said = dev.cli("import", SAMPLE, "--json").ok()
    assert said.json() == {
        "events": SAMPLE_EVENTS,
        "entities": SAMPLE_ENTITIES,
        "appended": SAMPLE_EVENTS - before,
        "duplicates": before,
        "skipped": 0,
        "last_position": SAMPLE_EVENTS,
    }
    assert_the_log_is_whole(dev)
    assert exported(dev, tmp_path) == uninterrupted[1]
