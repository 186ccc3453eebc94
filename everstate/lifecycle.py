"""What every server and the supervisor need around their work: signals, ports, child processes.

Termination follows one rule everywhere: the first Ctrl-C or SIGTERM asks for a graceful stop, a
second Ctrl-C stops at once. SIGHUP (the terminal was closed) counts as SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

from kernel.processes import BoundProcess, spawn

#: The exit code of a program that Ctrl-C stopped, as shells have it (128 + SIGINT).
INTERRUPTED = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_code_of(number: signal.Signals) -> int:
    """The exit code of a clean stop that ``number`` asked for: 130 for Ctrl-C, otherwise 0."""
    return INTERRUPTED if number is signal.SIGINT else 0


def stop_at_once() -> None:
    """End this process now, without any clean-up. Children die with it (`kernel.processes`)."""
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def termination_signals(
    first: Callable[[signal.Signals], None], at_once: Callable[[], None] = stop_at_once
) -> Iterator[None]:
    """While inside, the first termination signal calls ``first``, a later Ctrl-C ``at_once``.

    Both are called from a signal handler in the main thread, between any two instructions: they
    should do no more than set a flag or put into a `queue.SimpleQueue`. A later SIGTERM is ignored,
    as the stop is under way. The former handlers are back afterwards. Main thread only.
    """
    asked = False

    def handle(number: int, _frame: object) -> None:
        nonlocal asked
        if not asked:
            asked = True
            first(signal.Signals(number))
        elif number == signal.SIGINT:
            at_once()

    former = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.asynccontextmanager
async def termination(
    at_once: Callable[[], None] = stop_at_once,
) -> AsyncIterator[asyncio.Future[signal.Signals]]:
    """`termination_signals` for a server on asyncio: await the future for the first signal.

    Enter it on the loop of the main thread. The future is cancelled at the end when no signal came.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[signal.Signals] = loop.create_future()

    def handle(number: signal.Signals) -> None:
        if not asked.done():
            asked.set_result(number)
        elif number is signal.SIGINT:
            at_once()

    for number in _SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        yield asked
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        asked.cancel()


def is_port_busy(host: str, port: int) -> bool:
    """Whether a server that wants to listen on ``host`` and ``port`` would be refused now.

    SO_REUSEADDR lets the connections that a stopped server left in TIME_WAIT not count; without
    SO_REUSEPORT a listener that has it (grpc sets it) counts.

    Raises:
        OSError: The host is not an address of this machine, or the port is not ours to take.

    """
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            # With SO_REUSEADDR two may bind to a port as long as neither listens.
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False


def free_port(host: str, avoid: Sequence[int] = ()) -> int:
    """A port on ``host`` on which nobody listens now, none of ``avoid``.

    Somebody else may take it before it is used: whoever listens on it has to handle that.
    """
    family, _, _, _, address = socket.getaddrinfo(
        host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
            port = int(probe.getsockname()[1])
        if port not in avoid:
            return port


def spawn_child(
    program: Sequence[str],
    *,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    death_signal: signal.Signals = signal.SIGKILL,
) -> BoundProcess:
    """Start a server of ours: own session, stdout and stderr in one pipe, dies when we die.

    Raises:
        OSError: It could not be started.

    """
    return spawn(
        program,
        death_signal=death_signal,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
    )
