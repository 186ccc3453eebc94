"""The embedded PostgreSQL: its life, its deaths, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from kernel import devdb_host
from kernel.devdb import DevDatabase
from kernel.devdb_host import namespace, servers_of, wheel_binaries
from kernel.errors import Cancelled, FolderInUse, Unavailable

DEBIAN = Path("/usr/lib/postgresql/15/bin")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A stopped cluster to copy: initdb takes a second, a copy a tenth."""
    with tempfile.TemporaryDirectory() as name:
        database = DevDatabase(Path(name, "data"))
        with database, psycopg.connect(database.dsn()) as connection:
            connection.execute("CREATE TABLE things (id integer)")
        yield database.data_dir


@pytest.fixture
def data(cluster: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cluster, tmp_path / "data", symlinks=True))


@pytest.fixture
def database(data: Path) -> Iterator[DevDatabase]:
    database = DevDatabase(data)
    yield database
    database.kill()


def count(database: DevDatabase) -> int:
    with psycopg.connect(database.dsn()) as connection:
        row = connection.execute("SELECT count(*) FROM things").fetchone()
    assert row is not None
    return int(row[0])


def add(database: DevDatabase) -> None:
    with psycopg.connect(database.dsn()) as connection:
        connection.execute("INSERT INTO things VALUES (1)")


def eventually(happened: Callable[[], bool], seconds: float = 15) -> bool:
    """Poll what no event tells us: the end of processes that are not our children."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_a_first_start_makes_the_cluster_the_role_and_the_database(tmp_path: Path) -> None:
    database = DevDatabase(tmp_path / "new" / "data", settings={"work_mem": "5MB"})
    with database:
        with psycopg.connect(database.dsn()) as connection:
            assert connection.execute(
                "SELECT current_user, current_setting('is_superuser'), current_database(),"
                " pg_encoding_to_char(encoding), datcollate, current_setting('listen_addresses'),"
                " current_setting('fsync'), current_setting('synchronous_commit'),"
                " current_setting('work_mem'), current_setting('max_locks_per_transaction')"
                " FROM pg_database WHERE datname = current_database()"
            ).fetchone() == (
                *("everstate", "on", "everstate", "UTF8", "C", ""),
                *("on", "on", "5MB", "256"),
            )
        assert database.pid is not None
    assert database.pid is None
    assert servers_of(database.data_dir) == set()
    names = {path.name for path in database.data_dir.parent.iterdir()}
    assert names == {"data", "data.lock", "data.log", "data.run"}
    assert database.data_dir.parent.stat().st_mode & 0o077 == 0


def test_data_survive_stop_restart_and_kill(database: DevDatabase) -> None:
    database.start()
    add(database)
    database.restart()
    assert count(database) == 1
    add(database)
    pid = database.pid
    database.kill()
    assert pid is not None
    assert database.pid is None
    assert servers_of(database.data_dir) == set()
    database.start()
    assert count(database) == 2
    assert database.pid != pid


def test_starting_a_running_server_leaves_it_alone(database: DevDatabase) -> None:
    database.start()
    pid = database.pid
    database.start()
    assert database.pid == pid


def test_a_stop_disconnects_clients_and_is_quick(database: DevDatabase) -> None:
    database.start()
    with psycopg.connect(database.dsn()) as connection:
        connection.execute("INSERT INTO things VALUES (1)")
        begun = time.monotonic()
        database.stop()
        assert time.monotonic() - begun < 10
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert database.poll() is None


def test_a_server_that_does_not_obey_is_killed(database: DevDatabase) -> None:
    database.start()
    assert database.pid is not None
    os.kill(database.pid, signal.SIGSTOP)  # it cannot even handle the immediate shutdown
    database._process.stop((signal.SIGINT, timedelta(seconds=0.05)))  # type: ignore[union-attr]
    assert database.poll() == -signal.SIGKILL
    database.start()
    assert count(database) == 0


def test_a_crashed_postmaster_can_be_started_again_while_a_backend_is_busy(
    database: DevDatabase,
) -> None:
    database.start()
    with psycopg.connect(database.dsn()) as connection:
        assert database.pid is not None
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # it will not notice by itself
        os.kill(database.pid, signal.SIGKILL)
        assert database.wait(timedelta(seconds=10)) == -signal.SIGKILL
        assert backend in servers_of(database.data_dir)
        os.kill(backend, signal.SIGCONT)
        database.start()
    assert count(database) == 0


@linux_only
def test_a_pid_file_whose_pid_is_a_strangers_by_now_does_not_matter(database: DevDatabase) -> None:
    database.start()
    database.kill()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        file = database.data_dir / "postmaster.pid"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        lock = database.socket_dir / ".s.PGSQL.5432.lock"
        lock.write_text(f"{stranger.pid}\n{database.data_dir}\n1\n5432\n{database.socket_dir}\n")
        database.start()
        assert count(database) == 0
        assert stranger.poll() is None
        stranger.kill()


def test_a_second_launcher_on_the_folder_is_refused_and_the_first_lives_on(
    database: DevDatabase,
) -> None:
    database.start()
    with pytest.raises(FolderInUse, match=f"in use by the process {os.getpid()}"):
        DevDatabase(database.data_dir).start()
    assert count(database) == 0


def test_what_a_killed_initdb_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "data.initdb-killed"
    (leftover / "global").mkdir(parents=True)
    cancel = threading.Event()
    cancel.set()
    database = DevDatabase(tmp_path / "data")
    with pytest.raises(Cancelled):  # in the middle of initdb
        database.start(cancel=cancel)
    assert {path.name for path in tmp_path.iterdir()} <= {"data.log", "data.lock"}
    assert database.pid is None


def test_a_start_that_fails_says_the_reason_of_the_log(data: Path) -> None:
    database = DevDatabase(data, settings={"shared_buffers": "nonsense"})
    with pytest.raises(Unavailable, match='"shared_buffers"'):
        database.start()
    with DevDatabase(data):  # and the folder is free
        pass


def test_a_long_path_moves_the_socket_and_the_stop_removes_it(
    cluster: Path, tmp_path: Path
) -> None:
    data = tmp_path / ("long" * 30) / "it's, a data"
    shutil.copytree(cluster, data, symlinks=True)
    with DevDatabase(data) as database:
        assert count(database) == 0
        assert database.socket_dir.stat().st_mode & 0o777 == 0o700
        database.kill()
        assert not database.socket_dir.exists()
        database.start()
    assert not database.socket_dir.exists()


def test_a_socket_folder_in_the_way_is_refused(cluster: Path, tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30) / "data"
    shutil.copytree(cluster, data, symlinks=True)
    database = DevDatabase(data)
    database.socket_dir.mkdir(mode=0o755)
    try:
        with pytest.raises(FolderInUse, match="only its owner"):
            database.start()
        assert database.socket_dir.exists()
    finally:
        database.socket_dir.rmdir()


def test_a_link_to_the_data_serves_the_same_data(data: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(data)
    with DevDatabase(link) as database:
        assert servers_of(data) == servers_of(link) != set()
        assert count(database) == 0


PARENT = """
import sys, time, threading
from pathlib import Path
from kernel.devdb import DevDatabase
database = DevDatabase(Path(sys.argv[1]), _guard={"guard": True, "own": None}[sys.argv[2]])
def start():
    database.start()
    print(database.pid, flush=True)
    time.sleep(600)
if sys.argv[3] == "thread":
    threading.Thread(target=start).start()
else:
    start()
"""


@linux_only
@pytest.mark.parametrize("how", ["own", "guard"])
@pytest.mark.parametrize("thread", ["main", "thread"])
def test_no_process_is_left_when_the_parent_is_killed(data: Path, how: str, thread: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, data, how, thread], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        postmaster = int(parent.stdout.readline())
        assert postmaster in servers_of(data)
        assert os.getsid(postmaster) != os.getsid(parent.pid)  # a terminal's Ctrl-C misses it
        parent.kill()
    database = DevDatabase(data)
    database.start()  # at once: it waits for the one that is on its way down
    try:
        assert postmaster not in servers_of(data)
        assert count(database) == 0
    finally:
        database.stop()
    assert eventually(lambda: not guards_of(postmaster))


def guards_of(postmaster: int) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"_launch.py" in words and f"{postmaster}".encode() in words:
                found.append(process.name)
    return found


@linux_only
def test_a_guard_hands_on_signals_and_the_exit_code(data: Path) -> None:
    database = DevDatabase(data, _guard=True)
    database.start()
    assert database.pid in servers_of(data)
    add(database)
    assert database.pid is not None
    os.kill(database.pid, signal.SIGKILL)
    assert database.wait(timedelta(seconds=10)) == -signal.SIGKILL
    database.start()
    assert count(database) == 1
    database.kill()
    assert servers_of(data) == set()


@linux_only
def test_a_server_that_somebody_else_started_is_named_and_left_alone(
    database: DevDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.devdb._IMMEDIATE", timedelta(seconds=0.2))
    database.start()
    lock = database._lock_fd
    assert lock is not None
    os.close(lock)  # as if by hand: a server, and no launcher
    database._lock_fd = None
    with pytest.raises(FolderInUse, match=f"pid {database.pid}"):
        DevDatabase(database.data_dir).start()
    assert count(database) == 0


@root_only
def test_root_runs_it_under_a_closed_folder_without_handing_files_over(
    database: DevDatabase,
) -> None:
    if namespace() is None:
        pytest.skip("user namespaces are not allowed here")
    database.data_dir.parent.chmod(0o700)
    database.start()
    assert database.pid is not None
    status = Path(f"/proc/{database.pid}/status").read_text()
    assert "\nCapEff:\t0000000000000000\n" in status
    assert (database.data_dir / "postmaster.pid").stat().st_uid == 0


@root_only
def test_without_namespaces_root_runs_it_as_nobody_from_a_copy(cluster: Path) -> None:
    """And the data go on with a namespace afterwards."""
    nobody = devdb_host.uid_of_nobody()
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as closed:
        Path(name).chmod(0o711)
        # The wheel as it would be under /root: nobody can run nothing in there.
        wheel = wheel_binaries().parents[1]
        for path in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            Path(closed, path.name).symlink_to(path)
        bin_dir = Path(closed, wheel.name, "pginstall18", "bin")
        data = Path(name, "dev", "data")
        shutil.copytree(cluster, data, symlinks=True)
        with DevDatabase(data, bin_dir=bin_dir, _run_as="nobody") as database:
            assert database.pid is not None
            assert Path(f"/proc/{database.pid}").stat().st_uid == nobody
            assert len(list(data.parent.glob("data.binaries-*"))) == 1
            add(database)
            database.restart()
            database.kill()
        assert data.stat().st_uid == nobody
        new = DevDatabase(data.with_name("new"), bin_dir=bin_dir, _run_as="nobody")
        with new, psycopg.connect(new.dsn()):
            pass
        if namespace() is not None:
            with DevDatabase(data) as database:
                assert count(database) == 1
            assert (data / "global" / "pg_control").stat().st_uid == 0


@root_only
def test_a_folder_that_nobody_cannot_enter_is_named(data: Path, tmp_path: Path) -> None:
    tmp_path.parent.chmod(0o700)
    with pytest.raises(FolderInUse, match="the user nobody cannot enter /"):
        DevDatabase(data, _run_as="nobody").start()


@root_only
def test_a_cluster_of_another_user_is_refused(data: Path) -> None:
    os.chown(data, 12345, 12345)
    with pytest.raises(FolderInUse, match="belongs to uid 12345"):
        DevDatabase(data).start()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's PostgreSQL 15")
def test_the_same_launcher_runs_another_installation(tmp_path: Path) -> None:
    database = DevDatabase(tmp_path / "data", bin_dir=DEBIAN)
    with database, psycopg.connect(database.dsn()) as connection:
        assert connection.info.server_version // 10000 == 15


def test_libpqs_variables_do_not_reach_the_server_nor_the_dsn(
    database: DevDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    database.start()
    assert count(database) == 0


def test_nothing_listens_on_the_network(database: DevDatabase) -> None:
    database.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(database.socket_dir / ".s.PGSQL.5432"))
    assert database.socket_dir.stat().st_mode & 0o077 == 0
