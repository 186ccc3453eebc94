"""What tests of real processes share: the command line, running servers, killing them, waiting.

Nothing here sleeps in place of an event: what announces itself is awaited, what does not is asked
again until a deadline (`eventually`, `eventually_async`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import psycopg

from everstate.commands.database import upgrade
from everstate.lifecycle import free_port
from kernel.devdb import DevDatabase
from kernel.devdb_host import servers_of
from sidecar_api.client import (
    ANY,
    Append,
    Client,
    ClientSettings,
    EntityAppend,
    EventView,
    Expected,
    NewEvent,
    ReadQuery,
    VerifyReport,
)

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "samples" / "repo_history" / "psycopg-history.jsonl.gz"
SAMPLE_EVENTS, SAMPLE_ENTITIES = 12_243, 680
EVERSTATE = (sys.executable, "-P", "-m", "everstate")
LOOPBACK = "127.0.0.1"


def clean_env(**extra: str | Path | int) -> dict[str, str]:
    """The environment without anything of the caller's own Everstate."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EVERSTATE_")}
    return kept | {"PYTHONUNBUFFERED": "1"} | {k: str(v) for k, v in extra.items()}


# -- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a command that has ended said."""

    code: int
    out: str
    err: str

    def ok(self) -> Self:
        assert self.code == 0, f"exit code {self.code}: {self.err or self.out}"
        return self

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def error(self) -> dict[str, Any]:
        """The error of a command with --json: the only line on stderr, with nothing on stdout."""
        assert self.out == "", self.out
        body = json.loads(self.err)
        assert body.keys() == {"error"}
        return body["error"]

    def sentence(self) -> str:
        """The error of a command: one sentence and one hint on stderr, no traceback."""
        match = re.fullmatch(r"error: (.+)\nhint: .+\n", self.err)
        assert match is not None, self.err
        return match[1]


def cli(
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    stdin: bytes = b"",
    timeout: float = 60,
) -> Said:
    """Runs `everstate …` to its end."""
    done = subprocess.run(
        [*EVERSTATE, *map(str, arguments)],
        env=env or clean_env(),
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@dataclass
class Running:
    """A server of ours as a process; its lines (stdout and stderr) are kept as they come."""

    process: subprocess.Popen[bytes]
    lines: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def __post_init__(self) -> None:
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for raw in pipe:
                with self._changed:
                    self.lines.append(raw.decode("utf-8", "replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Waits for a line, said already or not, that matches."""
        deadline, seen = time.monotonic() + timeout, 0
        with self._changed:
            while True:
                while seen < len(self.lines):
                    if found := re.search(pattern, self.lines[seen]):
                        return found
                    seen += 1
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"no line like {pattern!r} in:\n{self.text}")
                self._changed.wait(left)

    def end(self, number: signal.Signals | None = None, timeout: float = 40) -> int:
        """Sends a signal, waits for the end of the process and of its output; its exit code."""
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
        code = self.process.wait(timeout)
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, timeout), "its output stays open"
        return code

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def start(*arguments: str | Path, env: dict[str, str]) -> Running:
    """Starts `everstate …`."""
    return Running(
        subprocess.Popen(
            [*EVERSTATE, *map(str, arguments)],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    )


def ports(count: int = 2) -> list[int]:
    """So many free ports."""
    found: list[int] = []
    while len(found) < count:
        found.append(free_port(LOOPBACK, found))
    return found


# -- everstate dev -------------------------------------------------------------------------------


@dataclass
class Dev:
    """`everstate dev` on a folder and ports of its own, which it keeps over restarts."""

    folder: Path
    env: dict[str, str] = field(init=False)
    running: Running | None = None

    def __post_init__(self) -> None:
        grpc, metrics, admin, worker = ports(4)
        self.env = clean_env(
            EVERSTATE_DEV_DIR=self.folder,
            EVERSTATE_GRPC_PORT=grpc,
            EVERSTATE_METRICS_PORT=metrics,
            EVERSTATE_ADMIN_PORT=admin,
            EVERSTATE_WORKER_METRICS_PORT=worker,
        )

    def start(self) -> Running:
        self.running = start("dev", env=self.env)
        self.running.until("^Ctrl-C stops")
        return self.running

    def cli(self, *arguments: str | Path, stdin: bytes = b"") -> Said:
        """A command as one types it beside a running `dev`: only the folder is known to it."""
        env = clean_env(EVERSTATE_DEV_DIR=self.folder)
        return cli(*arguments, env=env, stdin=stdin)

    def pids(self) -> set[int]:
        """Supervisor, node, and every process of PostgreSQL."""
        assert self.running is not None
        pid = self.running.pid
        return descendants(pid) | {pid} | servers_of(self.folder / "postgresql")

    def kill_everything(self) -> None:
        """kill -9 of all processes, at once; returns when none of them is left."""
        assert self.running is not None
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.running.end()
        eventually(lambda: not any(map(alive, pids)), "the killed processes end")

    def close(self) -> None:
        if self.running is not None and self.running.process.poll() is None:
            self.running.end(signal.SIGTERM)


def descendants(pid: int) -> set[int]:
    """The children of a process, theirs, and so on. Linux only."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = {int(word) for word in task.read_text().split()} - found
                found |= children
                waiting += children
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- everstate serve -----------------------------------------------------------------------------


@dataclass
class Node:
    """`everstate serve` on ports that it keeps over restarts."""

    database_url: str
    env: dict[str, str] = field(init=False)
    extra: dict[str, str] = field(default_factory=dict)
    running: Running | None = None

    def __post_init__(self) -> None:
        self.grpc_port, self.metrics_port = ports()
        self.env = clean_env(
            EVERSTATE_DATABASE_URL=self.database_url,
            EVERSTATE_GRPC_PORT=self.grpc_port,
            EVERSTATE_METRICS_PORT=self.metrics_port,
            **self.extra,
        )

    @property
    def url(self) -> str:
        return f"everstate://{LOOPBACK}:{self.grpc_port}/default"

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    def start(self) -> Self:
        self.running = start("serve", env=self.env)
        self.running.until("^node ready")
        return self

    def cli(self, *arguments: str | Path, stdin: bytes = b"", timeout: float = 60) -> Said:
        env = clean_env(EVERSTATE_URL=self.url)
        return cli(*arguments, env=env, stdin=stdin, timeout=timeout)

    def client(self, settings: ClientSettings | None = None, log: str = "default") -> Client:
        return Client(f"everstate://{LOOPBACK}:{self.grpc_port}/{log}", settings)

    def memory_mb(self, name: str = "VmHWM") -> float:
        """Resident memory of the process: VmRSS now, VmHWM at its highest. In 10^6 bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024 / 1e6

    def kill(self) -> None:
        assert self.running is not None
        self.running.kill()

    def stop(self) -> int:
        assert self.running is not None
        return self.running.end(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.running is not None:
            self.running.process.kill()
            self.running.process.wait()


@dataclass
class Worker:
    """`everstate work`."""

    database_url: str
    extra: dict[str, str] = field(default_factory=dict)
    running: Running | None = None

    def start(self) -> Self:
        env = clean_env(
            EVERSTATE_DATABASE_URL=self.database_url, EVERSTATE_WORKER_METRICS_PORT=0, **self.extra
        )
        self.running = start("work", env=env)
        self.running.until("^worker ready")
        return self

    def kill(self) -> None:
        assert self.running is not None
        self.running.kill()

    def stop(self) -> int:
        assert self.running is not None
        return self.running.end(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.running is not None:
            self.running.process.kill()
            self.running.process.wait()


@contextlib.contextmanager
def migrated(folder: Path, **settings: str) -> Any:
    """A PostgreSQL of its own (to be killed) with our schema."""
    with DevDatabase(folder / "pg", settings=settings) as server:
        upgrade(server.dsn(), "everstate")
        yield server


def make_database(executor: SimpleNamespace, name: str) -> str:
    where = f"host={executor.host} port={executor.port} user=everstate"
    with psycopg.connect(f"{where} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://everstate@/{name}?host={executor.host}&port={executor.port}"


# -- waiting -------------------------------------------------------------------------------------


def eventually(condition: Callable[[], object], what: str, timeout: float = 20) -> None:
    """Asks again and again until it is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)


async def eventually_async(
    condition: Callable[[], Awaitable[object]], what: str, timeout: float = 20
) -> None:
    """Asks again and again until it is true."""
    deadline = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        await asyncio.sleep(0.02)


# -- events --------------------------------------------------------------------------------------


def one(
    entity_id: str,
    payload: bytes = b"{}",
    expected: Expected = ANY,
    *,
    entity_type: str = "thing",
    event_type: str = "Happened",
    event_id: str = "",
) -> Append:
    """An append of one event."""
    return Append(
        (EntityAppend(entity_type, entity_id, expected),),
        (NewEvent(event_type, payload, event_id=event_id or str(uuid.uuid4())),),
    )


async def everything(client: Client, log: str = "") -> list[EventView]:
    """All events of a log, which are checked to come at positions 1, 2, 3, …"""
    events = [e async for batch in client.read(log, ReadQuery()) for e in batch.events]
    assert [e.position for e in events] == list(range(1, len(events) + 1))
    return events


async def verified(client: Client, log: str = "") -> VerifyReport:
    """The report of a verification, which finds nothing."""
    report = None
    async for progress in client.verify(log):
        report = progress.report or report
    assert report is not None
    assert (report.ok, report.holes, report.findings) == (True, 0, ())
    return report


def assert_sequences_have_no_hole(events: Iterable[EventView]) -> None:
    """Every entity's sequence numbers are 1, 2, 3, … in log order."""
    last: dict[tuple[str, str], int] = {}
    for event in events:
        entity = (event.entity_type, event.entity_id)
        assert event.sequence == last.get(entity, 0) + 1
        last[entity] = event.sequence


def without_recorded_at(path: Path) -> list[bytes]:
    """The lines of an export without the time at which each was recorded, nothing else changed."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    lines = data.splitlines(keepends=True)
    bare = [re.sub(rb',"recorded_at":"[^"]+"', b"", line) for line in lines]
    assert all(len(b) < len(a) for a, b in zip(lines, bare, strict=True))
    return bare


@contextlib.asynccontextmanager
async def running(*workers: Awaitable[object]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Tasks that run while inside and are cancelled at the end; a failed one fails the test."""
    tasks = [asyncio.ensure_future(worker) for worker in workers]
    try:
        yield tasks  # type: ignore[misc]
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for result in ended:
        if isinstance(result, Exception):
            raise result
