"""What `kernel.devdb` decides without a server."""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from kernel import devdb_host
from kernel.devdb import DEFAULT_SETTINGS, DevDatabase, socket_dir_for
from kernel.devdb_host import first_number, is_private, last_words, major_version, servers_of
from kernel.errors import ConfigurationError, FolderInUse

VERSION = 18


def test_the_socket_is_beside_the_data_while_its_path_fits() -> None:
    # "/" + name + ".run/.s.PGSQL.5432" is exactly the 107 bytes that a socket's path may have.
    fits = Path("/", "d" * (107 - len("/.run/.s.PGSQL.5432")))
    assert socket_dir_for(fits) == Path(f"{fits}.run")
    too_long = Path(f"{fits}d")
    assert socket_dir_for(too_long) != Path(f"{too_long}.run")
    assert len(os.fsencode(socket_dir_for(too_long) / ".s.PGSQL.5432")) <= 107


def test_a_path_is_measured_in_bytes_and_not_in_characters() -> None:
    assert socket_dir_for(Path("/", "ü" * 60)).name.startswith("everstate-")


def test_a_comma_in_the_path_moves_the_socket_since_it_separates_hosts_in_a_url() -> None:
    assert socket_dir_for(Path("/a,b/data")).name.startswith("everstate-")


def test_two_folders_with_long_paths_get_two_sockets() -> None:
    one, two = (socket_dir_for(Path("/", "d" * 200, name)) for name in ("one", "two"))
    assert one != two


def test_the_dsn_quotes_the_socket_folder_and_names_the_port() -> None:
    database = DevDatabase(Path("/a b/ü&?#%/data"))
    parts = urlsplit(database.dsn("some db"))
    assert (parts.username, parts.password, parts.path) == ("everstate", None, "/some%20db")
    assert parse_qs(parts.query) == {"host": ["/a b/ü&?#%/data.run"], "port": ["5432"]}


def test_the_defaults_are_durable() -> None:
    assert {DEFAULT_SETTINGS[name] for name in ("fsync", "full_page_writes")} == {"on"}
    assert DEFAULT_SETTINGS["synchronous_commit"] == "on"


def test_settings_of_the_caller_go_over_the_defaults() -> None:
    database = DevDatabase(Path("/x/data"), settings={"max_connections": "7"})
    assert database.settings == {**DEFAULT_SETTINGS, "max_connections": "7"}


def test_missing_binaries_are_reported_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    devdb_host.wheel_binaries.cache_clear()
    with pytest.raises(ConfigurationError, match=r"everstate\[embedded\].*EVERSTATE_DATABASE_URL"):
        DevDatabase(tmp_path / "data").start()
    assert not any(tmp_path.iterdir())


def test_binaries_that_do_not_run_are_reported(tmp_path: Path) -> None:
    (tmp_path / "postgres").write_text("not a program")
    with pytest.raises(ConfigurationError, match="does not run here"):
        major_version(tmp_path)


@pytest.mark.parametrize("content", ["file", "PG_VERSION"])
def test_a_folder_that_is_no_complete_cluster_is_refused_and_left_alone(
    tmp_path: Path, content: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / content).write_text(f"{VERSION}\n")
    with pytest.raises(FolderInUse, match="not a complete PostgreSQL cluster"):
        DevDatabase(data).start()
    assert [path.name for path in data.iterdir()] == [content]


def test_a_cluster_of_another_major_version_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "global").mkdir(parents=True)
    (data / "global" / "pg_control").touch()
    (data / "PG_VERSION").write_text("15\n")
    with pytest.raises(FolderInUse, match=f"PostgreSQL 15, the server is {VERSION}"):
        DevDatabase(data).start()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.touch()
    with pytest.raises(FolderInUse, match="is not a folder"):
        DevDatabase(data).start()
    with pytest.raises(FolderInUse, match=str(data)):
        DevDatabase(data / "inside").start()


def test_a_socket_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    sockets.chmod(0o755)
    assert not is_private(sockets)
    sockets.chmod(0o700)
    assert is_private(sockets)
    link = tmp_path / "link"
    link.symlink_to(sockets)
    assert not is_private(link)


def test_stopping_what_does_not_run_does_nothing(tmp_path: Path) -> None:
    database = DevDatabase(tmp_path / "data")
    database.stop()
    database.kill()
    assert database.pid is None
    assert database.poll() is None
    assert database.wait(timedelta(0)) is None


def test_a_pid_file_may_be_missing_or_torn(tmp_path: Path) -> None:
    file = tmp_path / "postmaster.pid"
    assert first_number(file) is None
    file.write_text("")
    assert first_number(file) is None
    file.write_text("12\n/data\n")
    assert first_number(file) == 12


def test_nobody_serves_a_folder_just_because_a_process_works_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # we work in it, and are no PostgreSQL
    assert servers_of(tmp_path) == set()


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            (
                '2026-01-01 10:00:00.000 UTC [7] FATAL:  could not create lock file "x"\n'
                "2026-01-01 10:00:00.001 UTC [7] LOG:  database system is shut down\n"
            ),
            'could not create lock file "x"',
        ),
        ("creating\ninitdb: error: no space\ninitdb: removing data\n", "no space"),
        ("error: cannot run /x/postgres: No such file\n", "cannot run /x/postgres: No such file"),
        ("one line\n\n", "one line"),
        ("", ""),
    ],
)
def test_the_last_words_are_the_reason(log: str, words: str) -> None:
    assert last_words(log) == words
