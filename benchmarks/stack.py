"""What a run needs: PostgreSQL on a disk, a node, a client, peers; each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg

from benchmarks import meter
from benchmarks.load import BenchmarkError
from everstate.commands.database import upgrade
from kernel.devdb import DevDatabase
from kernel.processes import BoundProcess, spawn
from sidecar_api.client import Client, Target

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60.0
SERVE: Sequence[str] = (sys.executable, "-m", "everstate")
_STOP = (signal.SIGTERM, timedelta(seconds=20))


@dataclass(slots=True)
class Service:
    """A process of ours that listens."""

    process: BoundProcess
    grpc: str
    metrics: str
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def target(self) -> Target:
        """For `sidecar_api.client.Client`."""
        host, _, port = self.grpc.rpartition(":")
        return Target(host, int(port))

    def check(self) -> None:
        """Raises `BenchmarkError` when it has ended."""
        code = self.process.poll()
        if code is not None:
            raise BenchmarkError(f"ended with {code}: {_last_words(self.log)}")

    def stop(self) -> None:
        """Ends it gracefully."""
        self.process.stop(_STOP)


@dataclass(slots=True)
class Worker:
    """An `everstate work` process."""

    process: BoundProcess
    log: Path

    def check(self) -> None:
        """Raises `BenchmarkError` when it has ended."""
        code = self.process.poll()
        if code is not None:
            raise BenchmarkError(f"ended with {code}: {_last_words(self.log)}")

    def stop(self) -> None:
        """Ends it gracefully."""
        self.process.stop(_STOP)


class Lines:
    """A process that takes commands and answers, a line of JSON each."""

    def __init__(self, name: str, process: BoundProcess, commands: int, log: Path) -> None:
        self.name = name
        self.process = process
        self._commands = commands
        self._log = log

    def send(self, command: dict[str, Any]) -> None:
        """Gives a command."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer says why
            os.write(self._commands, json.dumps(command).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        """The next answer. Raises `BenchmarkError` when it is an error, or none comes."""
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        if not line:
            raise BenchmarkError(f"{self.name} ended: {_last_words(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer

    async def run(self, kind: str, writers: int, seconds: float) -> dict[str, float]:
        """One round of inserts, in pyeventsourcing."""
        self.send({"kind": kind, "writers": writers, "seconds": seconds})
        return await self.answer()

    def stop(self) -> None:
        """Ends it: it reads the end of its input."""
        os.close(self._commands)
        self.process.stop((signal.SIGTERM, timedelta(seconds=10)))


def _last_words(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


def _environment(**more: str) -> dict[str, str]:
    """Ours without any EVERSTATE_ or POSTGRES_ setting: a run depends on its options only."""
    mine = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("EVERSTATE_", "POSTGRES_", "PG"))
    }
    return mine | more


class Stack:
    """The processes of a run. Made in the main thread; `close` stops them all, in reverse order."""

    def __init__(self, folder: Path, serve: Sequence[str] = SERVE) -> None:
        self.folder = folder
        self._serve = serve
        self._serial = 0
        self._stops = contextlib.ExitStack()
        self.database = DevDatabase(folder / "data")
        self._node: Service | None = None
        self._echo: Service | None = None
        self._peer: Lines | None = None
        self._projection_peer: Lines | None = None
        self._worker: Worker | None = None
        self._subscribers: Lines | None = None
        self._client: Client | None = None
        self._other_client: Client | None = None
        self._connection: Any = None
        self.postgres_version = ""

    def open(self) -> None:
        """Starts PostgreSQL and makes the schema."""
        self._stops.callback(self.database.stop)
        self.database.start()
        upgrade(self.database.dsn(), "everstate")

    def close(self) -> None:
        """Stops every process."""
        self._stops.close()

    async def aclose(self) -> None:
        """Closes what belongs to the event loop; before `close`."""
        for client in (self._client, self._other_client):
            if client is not None:
                await client.close()
        if self._connection is not None:
            await self._connection.close()

    # The parts, each started when first wanted

    @property
    def node(self) -> Service:
        """The node that all but the memory scenarios use."""
        if self._node is None:
            self._node = self.start_node()
        self._node.check()
        return self._node

    @property
    def client(self) -> Client:
        """A client of `node`."""
        if self._client is None:
            self._client = Client(self.node.target)
        self.node.check()
        return self._client

    @property
    def other_client(self) -> Client:
        """A client of another node on the same database."""
        if self._other_client is None:
            self._other_client = Client(self.start_node().target)
        return self._other_client

    @property
    def echo(self) -> Service:
        """The bare server."""
        if self._echo is None:
            self._echo = self._start(
                lambda fd: [sys.executable, "-m", "benchmarks.peers.echo", str(fd)],
                _environment(),
            )
        return self._echo

    async def connection(self) -> Any:
        """One bare asyncpg connection, with the node's planner settings."""
        if self._connection is None:
            self._connection = await asyncpg.connect(
                self.database.dsn(), server_settings={"jit": "off", "timezone": "UTC"}
            )
        return self._connection

    async def peer(self) -> Lines:
        """pyeventsourcing, on a database of its own."""
        if self._peer is None:
            self._peer = await self._peer_of("pyeventsourcing", "peer")
        return self._peer

    async def projection_peer(self) -> Lines:
        """pyeventsourcing's projections, on a database of their own."""
        if self._projection_peer is None:
            self._projection_peer = await self._peer_of(
                "pyeventsourcing_projection", "projection_peer"
            )
        return self._projection_peer

    async def _peer_of(self, name: str, database: str) -> Lines:
        connection = await self.connection()
        found = "SELECT 1 FROM pg_database WHERE datname = $1"
        if not await connection.fetchval(found, database):
            await connection.execute(f"CREATE DATABASE {database}")
        url = urlsplit(self.database.dsn())
        host = parse_qs(url.query)["host"][0]
        return self._lines(name, host, url.username or "", database)

    def subscribers(self) -> Lines:
        """Subscribers of whatever speaks the protocol, in one process."""
        if self._subscribers is None:
            self._subscribers = self._lines("subscribers")
        return self._subscribers

    def _lines(self, name: str, *arguments: str) -> Lines:
        log = self._log(name)
        theirs, commands = os.pipe()
        with os.fdopen(theirs, "rb") as stdin, log.open("wb") as stderr:
            process = spawn(
                [sys.executable, "-m", f"benchmarks.peers.{name}", *arguments],
                env=_environment(), cwd=ROOT, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        made = Lines(name, process, commands, log)
        self._stops.callback(made.stop)
        return made

    def start_fanout(self, record: Path, subscribers: int) -> Service:
        """The bare server of ready-made messages."""
        return self._start(
            lambda fd: [
                sys.executable, "-m", "benchmarks.peers.fanout", str(fd), str(record),
                str(subscribers),
            ],
            _environment(),
        )  # fmt: skip

    def start_node(self) -> Service:
        """A further node; `close` stops it when nobody did."""
        words = ("serve", "--grpc-port", "0", "--metrics-port", "0", "--ready-fd")
        return self._start(
            lambda fd: [*self._serve, *words, str(fd)],
            _environment(EVERSTATE_DATABASE_URL=self.database.dsn()),
        )

    def start_worker(self, app: Path) -> Worker:
        """`everstate work` with the projections of a folder; `close` stops it when nobody did."""
        log = self._log("worker")
        with log.open("wb") as output:
            process = spawn(
                [*self._serve, "work"],
                env=_environment(
                    EVERSTATE_DATABASE_URL=self.database.dsn(),
                    EVERSTATE_APP=str(app),
                    EVERSTATE_WORKER_METRICS_PORT="0",
                ),
                cwd=ROOT, stdout=output, stderr=output,
            )  # fmt: skip
        self._worker = Worker(process, log)
        self._stops.callback(self._worker.stop)
        return self._worker

    def _log(self, name: str) -> Path:
        self._serial += 1
        return self.folder / f"{name}-{self._serial}.log"

    def _start(self, command: Callable[[int], list[str]], env: dict[str, str]) -> Service:
        log = self._log("service")
        ours, theirs = os.pipe()
        try:
            with log.open("wb") as output:
                process = spawn(
                    command(theirs), env=env, cwd=ROOT, stdout=output, stderr=output,
                    pass_fds=(theirs,),
                )  # fmt: skip
            self._stops.callback(process.stop, _STOP)
        finally:
            os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as pipe:
            ready, _, _ = select.select([pipe], [], [], READY_SECONDS)
            line = pipe.readline() if ready else b""
        if not line:
            raise BenchmarkError(f"a service did not start: {_last_words(log)}")
        addresses = json.loads(line)
        return Service(process, addresses["grpc"], addresses.get("metrics", ""), log)

    # What is measured from outside

    def cpu(self) -> meter.Reading | None:
        """CPU used so far, by process."""
        pids = {"client": os.getpid()}
        for role, service in (("node", self._node), ("echo", self._echo)):
            if service is not None:
                pids[role] = service.pid
        for peer in (self._peer, self._projection_peer):
            if peer is not None:
                pids["pyeventsourcing"] = peer.process.pid
        if self._worker is not None and self._worker.process.poll() is None:
            pids["worker"] = self._worker.process.pid
        if self._subscribers is not None:
            pids["subscribers"] = self._subscribers.process.pid
        return meter.read(pids, self.database.pid)

    async def batches(self) -> tuple[float, float]:
        """(commits, appends in them) of `node` so far, from its metrics."""
        url = f"{self.node.metrics}/metrics"

        def fetch() -> str:
            with urllib.request.urlopen(url, timeout=10) as reply:
                text: str = reply.read().decode()
            return text

        found = {}
        for line in (await asyncio.to_thread(fetch)).splitlines():
            name, _, value = line.partition(" ")
            found[name] = value
        return (
            float(found["everstate_batch_appends_count"]),
            float(found["everstate_batch_appends_sum"]),
        )


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` that SIGTERM ends as Ctrl-C does: by cancelling ``main``. An exception out of a
    signal handler would go through grpc's compiled callbacks, and these crash.

    Raises:
        SystemExit: SIGTERM came.

    """

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        asked = False

        def ask() -> None:
            nonlocal asked
            asked = True
            task.cancel()

        loop.add_signal_handler(signal.SIGTERM, ask)
        try:
            return await main
        except asyncio.CancelledError:
            if asked:
                raise SystemExit(128 + signal.SIGTERM) from None
            raise
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    return asyncio.run(guarded())


@contextlib.contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A folder in ``place`` that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="everstate-bench-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
