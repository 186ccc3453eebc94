"""The supervisor behind `everstate dev`: starts the very commands of production and watches them.

Everything happens in the main thread, which waits on one queue. Helper threads only turn what the
kernel tells them (a line, a ready message, an exit) into events: children have to be started by the
main thread, with which they die (`kernel.processes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import IO, assert_never

from everstate.lifecycle import exit_code_of, spawn_child, termination_signals
from kernel.devdb import DevDatabase
from kernel.errors import Cancelled, EverstateError

_DATABASE = "postgresql"
_READY_WITHIN = timedelta(seconds=120)
_STOP_WITHIN = timedelta(seconds=20)
_LAST_LINES_WITHIN = 2.0
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 30.0
_STEADY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Task:
    """A command that has to end well before the servers start, such as the migration."""

    name: str
    program: Sequence[str]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Server:
    """A command that runs on.

    ``program`` is made for the number of the descriptor on which the server writes one line of JSON
    once it is ready; ``describe`` makes the text of our ready line from it.
    """

    name: str
    program: Callable[[int], Sequence[str]]
    env: Mapping[str, str]
    describe: Callable[[Mapping[str, str]], str]


class StartFailed(Exception):
    """A child ended, or was not ready in time, at the first start; the sentences say why."""

    def __init__(self, code: int, sentences: Sequence[str]) -> None:
        super().__init__("; ".join(sentences))
        self.code = code
        self.sentences = tuple(sentences)


class _Asked(Exception):
    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class _Signalled:
    number: signal.Signals


@dataclass(frozen=True, slots=True)
class _Ready:
    name: str
    generation: int
    says: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Ended:
    name: str
    generation: int
    code: int


_Event = _Signalled | _Ready | _Ended


class Console:
    """Lines for people: whole, in order, at once. A closed terminal is no reason to stop."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self._out = out
        self._lock = threading.Lock()

    def say(self, text: str = "") -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            print(text, file=self._out or sys.stdout, flush=True)

    def status(self, name: str, text: str) -> None:
        self.say(f"{name:<10}  {text}")


@dataclass(slots=True)
class _Backoff:
    """Exponential with jitter, a quarter of a second to half a minute; a steady run resets it."""

    failures: int = 0
    started_at: float = field(default_factory=time.monotonic)

    def started(self) -> None:
        self.started_at = time.monotonic()

    def next_delay(self) -> float:
        if time.monotonic() - self.started_at >= _STEADY_SECONDS:
            self.failures = 0
        longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0**self.failures)
        self.failures = min(self.failures + 1, 16)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret


class _Child:
    """One running command: its lines are relayed, its ready message and its end become events."""

    def __init__(
        self,
        name: str,
        generation: int,
        program: Callable[[int], Sequence[str]],
        env: Mapping[str, str],
        *,
        events: queue.SimpleQueue[_Event],
        console: Console,
        hold_sentences: bool,
    ) -> None:
        self.name = name
        self.generation = generation
        self.sentences: list[str] = []
        self._hold_sentences = hold_sentences
        self._events = events
        self._console = console
        ready, theirs = os.pipe()
        try:
            self.process = spawn_child(program(theirs), env=env, pass_fds=(theirs,))
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(theirs)
        self._relay = threading.Thread(target=self._relay_lines, daemon=True)
        self._relay.start()
        threading.Thread(target=self._await_ready, args=(ready,), daemon=True).start()
        threading.Thread(target=self._await_end, daemon=True).start()

    def stop(self) -> None:
        self.process.stop((signal.SIGTERM, _STOP_WITHIN))
        self.drain()

    def drain(self) -> None:
        """Wait for the last lines. Bounded: a grandchild may hold the pipe open."""
        self._relay.join(_LAST_LINES_WITHIN)

    def is_ready(self) -> None:
        """From now on its errors are lines like others, also those it said before."""
        self._hold_sentences = False
        for line in self.sentences:
            self._console.say(f"{self.name} | {line}")
        self.sentences.clear()

    def _relay_lines(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if self._hold_sentences and line.startswith(("error: ", "hint: ")):
                self.sentences.append(line)
            else:
                self._console.say(f"{self.name} | {line}")

    def _await_ready(self, fd: int) -> None:
        with os.fdopen(fd, "rb") as pipe:
            line = pipe.readline()
        if line.endswith(b"\n"):
            said = json.loads(line)
            self._events.put(_Ready(self.name, self.generation, {k: str(said[k]) for k in said}))

    def _await_end(self) -> None:
        code = self.process.wait()
        self.drain()
        self._events.put(_Ended(self.name, self.generation, 1 if code is None else code))


class Supervisor:
    """Starts ``database`` (if embedded), ``tasks``, ``servers``, in this order; stops in reverse.

    ``address`` is how the database is shown to people.
    A server that ends is started again with back-off, and so is the database: the servers reconnect
    by themselves.
    """

    def __init__(
        self,
        *,
        database: DevDatabase | None,
        address: str,
        tasks: Sequence[Task],
        servers: Sequence[Server],
        console: Console,
    ) -> None:
        self._database = database
        self._address = address
        self._tasks = tasks
        self._servers = {server.name: server for server in servers}
        self._console = console
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._cancel = threading.Event()
        self._children: dict[str, _Child] = {}
        self._backoffs: dict[str, _Backoff] = {}
        self._due: dict[str, float] = {}
        self._current: dict[str, int] = {}
        self._generation = 0

    def run(self, when_ready: Callable[[], None]) -> int:
        """Run until a signal asks for the end; ``when_ready`` is called once everything is ready.

        Returns the exit code: 0 after SIGTERM, 130 after Ctrl-C. Everything has stopped then.

        Raises:
            StartFailed: A child did not come up at the first start. Everything has stopped.
            EverstateError: The database did not start. Everything has stopped.

        """
        with termination_signals(self._on_signal):
            try:
                self._start_database()
                for task in self._tasks:
                    self._run_task(task)
                if self._database is None:
                    self._console.status(_DATABASE, f"ready  {self._address}")
                for server in self._servers.values():
                    self._first_start(server)
                when_ready()
                while True:
                    self._turn()
            except _Asked as asked:
                name = "Ctrl-C" if asked.number is signal.SIGINT else asked.number.name
                self._console.say(f"{name}: stopping; Ctrl-C (again) stops at once")
                return exit_code_of(asked.number)
            finally:
                self._stop_all()

    # -- events ----------------------------------------------------------------------------------

    def _on_signal(self, number: signal.Signals) -> None:
        # In a signal handler: SimpleQueue.put may be called there, and nobody waits on the event.
        self._cancel.set()
        self._events.put(_Signalled(number))

    def _turn(self, until: float | None = None) -> _Ready | _Ended | None:
        """Handle the next event or due restart.

        Returns the event when it was about a child or the database that we still care about;
        ``None`` when it was not, or when ``until`` (or a restart's time) came first.
        """
        wakes = [*self._due.values()] + ([] if until is None else [until])
        try:
            timeout = max(0.0, min(wakes) - time.monotonic()) if wakes else None
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            now = time.monotonic()
            for name in [name for name, due in self._due.items() if due <= now]:
                del self._due[name]
                self._restart(name)
            return None
        if isinstance(event, _Signalled):
            raise _Asked(event.number)
        if self._current.get(event.name) != event.generation:
            return None
        match event:
            case _Ready(name, _, says):
                self._children[name].is_ready()
                self._backoffs.setdefault(name, _Backoff())
                self._console.status(name, f"ready  {self._servers[name].describe(says)}")
            case _Ended(name, _, code):
                del self._current[name]
                # What never was ready has no back-off: whoever waits for it decides.
                if name in self._backoffs:
                    self._children.pop(name, None)
                    self._again(name, f"stopped ({_how(code)})")
            case _:
                assert_never(event)
        return event

    def _again(self, name: str, what: str) -> None:
        delay = self._backoffs[name].next_delay()
        self._console.status(name, f"{what}, starting it again in {delay:.1f} s")
        self._due[name] = time.monotonic() + delay

    def _restart(self, name: str) -> None:
        self._backoffs[name].started()
        try:
            if name == _DATABASE:
                self._start_database()
            else:
                server = self._servers[name]
                self._spawn(name, server.program, server.env, hold_sentences=False)
        except (EverstateError, OSError) as error:
            self._again(name, f"did not start: {error}")

    # -- starts and stops ------------------------------------------------------------------------

    def _start_database(self) -> None:
        database = self._database
        if database is None:
            return
        try:
            database.start(cancel=self._cancel)
        except Cancelled:
            while True:  # the signal that cancelled it is in the queue, and raises
                self._turn()
        generation = self._next_generation(_DATABASE)

        def await_end() -> None:
            code = database.wait()
            self._events.put(_Ended(_DATABASE, generation, 1 if code is None else code))

        threading.Thread(target=await_end, daemon=True).start()
        self._backoffs.setdefault(_DATABASE, _Backoff()).started()
        self._console.status(_DATABASE, f"ready  {self._address}")

    def _run_task(self, task: Task) -> None:
        child = self._spawn(task.name, lambda _: task.program, task.env, hold_sentences=True)
        ended = self._await(child, None)
        if isinstance(ended, _Ended) and ended.code != 0:
            raise self._failure(child, ended.code)

    def _first_start(self, server: Server) -> None:
        child = self._spawn(server.name, server.program, server.env, hold_sentences=True)
        event = self._await(child, time.monotonic() + _READY_WITHIN.total_seconds())
        if event is None:
            seconds = f"{_READY_WITHIN.total_seconds():g}"
            raise StartFailed(6, [f"error: {server.name} was not ready within {seconds} s"])
        if isinstance(event, _Ended):
            raise self._failure(child, event.code)

    def _await(self, child: _Child, until: float | None) -> _Ready | _Ended | None:
        while until is None or time.monotonic() < until:
            event = self._turn(until)
            if event is not None and event.name == child.name:
                return event
        return None

    def _failure(self, child: _Child, code: int) -> StartFailed:
        said = child.sentences or [
            f"error: {child.name} ended before it was ready ({_how(code)}); its lines are above"
        ]
        return StartFailed(code if code > 0 else 1, said)

    def _spawn(
        self,
        name: str,
        program: Callable[[int], Sequence[str]],
        env: Mapping[str, str],
        *,
        hold_sentences: bool,
    ) -> _Child:
        child = _Child(
            name,
            self._next_generation(name),
            program,
            env,
            events=self._events,
            console=self._console,
            hold_sentences=hold_sentences,
        )
        self._children[name] = child
        return child

    def _next_generation(self, name: str) -> int:
        self._generation += 1
        self._current[name] = self._generation
        return self._generation

    def _stop_all(self) -> None:
        for name, child in reversed(self._children.items()):
            if child.process.poll() is None:
                child.stop()
                self._console.status(name, "stopped")
        if self._database is not None:
            ran = self._database.pid is not None
            self._database.stop()
            if ran:
                self._console.status(_DATABASE, "stopped")


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
