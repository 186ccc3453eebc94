"""`everstate dev`: everything on this machine, in one folder, with one command."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from everstate.lifecycle import free_port, is_port_busy
from everstate.supervisor import Console, Server, StartFailed, Supervisor, Task
from kernel import usercode
from kernel.devdb import DevDatabase
from kernel.errors import (
    AddressInUse,
    ConfigurationError,
    DeadlineExceeded,
    EverstateError,
    FolderInUse,
    Unavailable,
)
from kernel.tokens import digest_of, mint

_HOST = "127.0.0.1"
_MARKER = "everstate-dev.json"
_LOCK = "everstate-dev.lock"
_ENV_FILE = "everstate.env"
_DEFAULT_PORTS = {
    "EVERSTATE_GRPC_PORT": 7400,
    "EVERSTATE_METRICS_PORT": 7490,
    "EVERSTATE_ADMIN_PORT": 7480,
    "EVERSTATE_WORKER_METRICS_PORT": 7491,
}
_SAMPLE = Path(__file__).parents[2] / "samples" / "repo_history"
_SAMPLE_EVENTS = _SAMPLE / "psycopg-history.jsonl.gz"

# The CLI's exit codes: usage 2, refused 4, unreachable 5, deadline 6.
_EXIT_CODES: tuple[tuple[type[EverstateError], int], ...] = (
    (ConfigurationError, 2),
    (FolderInUse, 4),
    (AddressInUse, 4),
    (Unavailable, 5),
    (DeadlineExceeded, 6),
)


@dataclass(frozen=True, slots=True)
class Programs:
    """The commands that `dev` runs; tests put stand-ins here."""

    # -P: a module of the user's folder never shadows one of ours.
    migrate: Sequence[str] = (sys.executable, "-P", "-m", "everstate", "migrate")
    serve: Sequence[str] = (sys.executable, "-P", "-m", "everstate", "serve")
    admin: Sequence[str] = (sys.executable, "-P", "-m", "everstate", "admin")
    work: Sequence[str] = (sys.executable, "-P", "-m", "everstate", "work")


class _Refused(Exception):
    def __init__(self, code: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def register(app: typer.Typer) -> None:
    """Add the command to the CLI."""
    app.command("dev")(dev)


def dev(
    no_sample: Annotated[
        bool,
        typer.Option("--no-sample", help="Neither register the sample's projections nor offer it."),
    ] = False,
    app: Annotated[
        Path | None,
        typer.Option(
            "--app",
            help="Your everstate.toml or pyproject.toml, or its folder; default: in this folder.",
        ),
    ] = None,
) -> None:
    """Run Everstate on this machine: embedded PostgreSQL, node, worker and admin, until Ctrl-C.

    The data is in $EVERSTATE_DEV_DIR (./.everstate) and is found again by the next start. With
    EVERSTATE_DATABASE_URL set, that database (PostgreSQL 15 to 18) is used instead of the embedded.

    Runs the projections of --app, or of the everstate.toml or pyproject.toml ([tool.everstate]) in
    this folder. Where there is none, those of the sample.

    Ctrl-C stops all in order (exit code 130), SIGTERM too (exit code 0); a second Ctrl-C stops at
    once. Nothing is left running however this command ends.
    """
    raise typer.Exit(run(os.environ, sample=not no_sample, app=app))


def run(
    env: Mapping[str, str],
    *,
    sample: bool,
    app: Path | None = None,
    programs: Programs | None = None,
) -> int:
    """Do what `dev` does; returns the exit code. Failures are sentences on stderr."""
    folder = Path(env.get("EVERSTATE_DEV_DIR") or ".everstate").absolute()
    database: DevDatabase | None = None
    try:
        if app is None and env.get("EVERSTATE_APP"):
            app = Path(env["EVERSTATE_APP"])
        app, sample = _user_code(app, sample)
        if app is not None:
            env = {**env, "EVERSTATE_APP": str(app)}
        with _claimed(folder):
            url = env.get("EVERSTATE_DATABASE_URL")
            if not url:
                database = DevDatabase(folder / "postgresql")
            return _supervise(
                env, folder, database, url, sample=sample, programs=programs or Programs()
            )
    except _Refused as refused:
        _complain(str(refused), refused.hint)
        return refused.code
    except StartFailed as failed:
        print("\n".join(failed.sentences), file=sys.stderr)
        return failed.code
    except EverstateError as error:
        hint = error.hint
        if database is not None and isinstance(error, Unavailable | DeadlineExceeded):
            hint = f"the whole log is {database.log_path}"
        _complain(str(error), hint)
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


def _supervise(
    env: Mapping[str, str],
    folder: Path,
    database: DevDatabase | None,
    url: str | None,
    *,
    sample: bool,
    programs: Programs,
) -> int:
    console = Console()
    ports = _ports(env, console)
    dsn = url or (database.dsn() if database is not None else "")
    admin_url = f"http://{_HOST}:{ports['EVERSTATE_ADMIN_PORT']}"
    token = _token(folder / _ENV_FILE)
    node_url = f"everstate://{_HOST}:{ports['EVERSTATE_GRPC_PORT']}/default"
    child_env = {
        **env,
        "EVERSTATE_DATABASE_URL": dsn,
        "EVERSTATE_DEV": "1",
        "EVERSTATE_DEV_DIR": str(folder),
        # Lines arrive when they are written, not when a buffer is full.
        "PYTHONUNBUFFERED": "1",
        **{name: str(port) for name, port in ports.items()},
    }
    _write(
        folder / _ENV_FILE,
        "# Written by `everstate dev` at each start; `everstate` and shells may read it.\n"
        f"EVERSTATE_URL={_quoted(node_url)}\n"
        f"EVERSTATE_ADMIN_URL={_quoted(admin_url)}\n"
        f"EVERSTATE_DATABASE_URL={_quoted(dsn)}\n"
        f"EVERSTATE_TOKEN={_quoted(token)}\n",
    )

    def node(said: Mapping[str, str]) -> str:
        return f"everstate://{said['grpc']}/default   metrics {said['metrics']}/metrics"

    def worker(said: Mapping[str, str]) -> str:
        return f"{said['projections']} projections   metrics {said['metrics']}/metrics"

    def server(
        name: str, program: Sequence[str], describe: Callable[[Mapping[str, str]], str]
    ) -> Server:
        return Server(name, lambda fd: [*program, "--ready-fd", str(fd)], child_env, describe)

    def say_next() -> None:
        for line in _next_steps(env, sample):
            console.say(line)

    supervisor = Supervisor(
        database=database,
        address=masked(dsn),
        tasks=[Task("migrate", programs.migrate, child_env)],
        servers=[
            server("node", programs.serve, node),
            server("worker", programs.work, worker),
            server("admin", programs.admin, lambda said: f"{said['http']}/openapi.json"),
        ],
        console=console,
    )
    return supervisor.run(say_next)


# -- user code -----------------------------------------------------------------------------------


def _user_code(app: Path | None, sample: bool) -> tuple[Path | None, bool]:
    """The file that names the projections to run, and whether the sample is offered.

    The user's own code comes first; then the sample's projections are not registered, so they are
    not offered.

    Raises:
        ConfigurationError: ``app`` does not exist or is wrong.

    """
    code = usercode.find(app)
    if app is not None and code is None:
        raise ConfigurationError(f"user code: {app} names none ([tool.everstate] is missing)")
    if code is not None:
        return code.file, False
    own = _SAMPLE / usercode.FILE
    return (own, True) if sample and own.is_file() else (None, False)


# -- the folder ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make the folder or take it over, and hold its lock."""
    elsewhere = "name an empty or a new folder in EVERSTATE_DEV_DIR"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Our own files that a start leaves behind when it is killed before the marker is there.
        strangers = {path.name for path in folder.iterdir()} - {_LOCK, f"{_MARKER}.new"}
        if strangers and _MARKER not in strangers:
            raise _Refused(2, f"{folder} is not empty and was not made by everstate dev", elsewhere)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise _Refused(2, f"{folder} is not a folder", elsewhere) from None
    except OSError as error:
        raise _Refused(2, f"{error.filename or folder}: {error.strerror}", elsewhere) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            raise FolderInUse(
                f"another everstate dev (pid {owner}) is running on {folder}"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())
        if not (folder / _MARKER).exists():
            _write(folder / _MARKER, json.dumps({"format": 1}) + "\n")
        yield
    finally:
        os.close(lock)


def _write(path: Path, text: str) -> None:
    """Replace a file's content in one step; nobody else can read it."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # of a start that was killed
    with open(new, "x", encoding="utf-8", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _token(env_file: Path) -> str:
    """The token of this folder: the one of the last start, which shells may have, else a new one.

    The admin that we start knows it from the file; no database does.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in env_file.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name == "EVERSTATE_TOKEN" and digest_of(value.strip("'")) is not None:
                return value.strip("'")
    return mint()


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


# -- ports and addresses -------------------------------------------------------------------------


def _ports(env: Mapping[str, str], console: Console) -> dict[str, int]:
    """The ports of the children: those that were set, else the defaults, else free ones."""
    ports: dict[str, int] = {}
    for name, default in _DEFAULT_PORTS.items():
        if text := env.get(name):
            port = int(text) if text.isascii() and text.isdigit() else -1
            if not 0 <= port <= 65535:
                raise ConfigurationError(f"{name}: {text!r} is not a port (0 to 65535)")
            ports[name] = port or free_port(_HOST, [*ports.values()])
            if _is_busy(name, ports[name]):
                raise AddressInUse(f"{name}: the port {port} is busy")
        elif is_port_busy(_HOST, default) or default in ports.values():
            ports[name] = free_port(_HOST, [*ports.values()])
            console.say(f"the port {default} is busy, taking {ports[name]} ({name} sets it)")
        else:
            ports[name] = default
    if len(set(ports.values())) < len(ports):
        same = [name for name, port in ports.items() if [*ports.values()].count(port) > 1]
        raise ConfigurationError(f"{' and '.join(same)} are the same port")
    return ports


def _is_busy(name: str, port: int) -> bool:
    try:
        return is_port_busy(_HOST, port)
    except OSError as error:  # below 1024 for a user
        raise ConfigurationError(f"{name}: the port {port}: {error.strerror}") from error


def masked(url: str) -> str:
    """A database URL (or libpq's ``key=value`` form) without its password, to be shown.

    A text that cannot be taken apart with certainty is not shown at all.
    """
    if "://" not in url:
        return re.sub(r"\bpassword\s*=\s*('(?:[^'\\]|\\.)*'|\S+)", "password=***", url)
    unclear = "the database of EVERSTATE_DATABASE_URL"
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None
    except ValueError:
        return unclear
    if parts.fragment or "@" in parts.path + parts.query:
        return unclear  # most likely a password with a / or # or ? that was not quoted
    address = parts.netloc
    if has_password:
        # The password may hold an @; the host may not.
        user, _, host = address.rpartition("@")
        address = f"{user.partition(':')[0]}:***@{host}"
    query = re.sub(r"(?i)\b((?:ssl)?password)=[^&]*", r"\1=***", parts.query)
    # Not geturl: it drops the // of an empty address.
    return f"{parts.scheme}://{address}{parts.path}" + (f"?{query}" if query else "")


# -- words ---------------------------------------------------------------------------------------


def _next_steps(env: Mapping[str, str], sample: bool) -> list[str]:
    command = _command()
    lines = ["", "Try, in another terminal:"]
    if folder := env.get("EVERSTATE_DEV_DIR"):
        lines.append(f"  export EVERSTATE_DEV_DIR={shlex.quote(str(Path(folder).absolute()))}")
    if sample and _SAMPLE_EVENTS.is_file():
        lines.append(f"  {command} import {shlex.quote(_near(_SAMPLE_EVENTS))}")
        lines.append(f"  {command} entity show file psycopg/docs/news.rst")
        lines.append(f"  {command} projection list")
    return [*lines, f"  {command} log verify", "Ctrl-C stops.", ""]


def _command() -> str:
    """What to type for `everstate` in another terminal of this kind."""
    ours = Path(sys.executable).with_name("everstate")
    if shutil.which("everstate") == str(ours) or not ours.exists():
        return "everstate"
    return shlex.quote(_near(ours))


def _near(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _complain(message: str, hint: str) -> None:
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
