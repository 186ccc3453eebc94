"""Signals, ports and child processes of `everstate.lifecycle`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator

import pytest

from everstate.lifecycle import (
    exit_code_of,
    free_port,
    is_port_busy,
    spawn_child,
    termination,
    termination_signals,
)

HOST = "127.0.0.1"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as server:
        yield server


def test_the_first_signal_asks_and_a_later_ctrl_c_stops_at_once() -> None:
    asked: list[signal.Signals] = []
    stopped: list[bool] = []
    with termination_signals(asked.append, lambda: stopped.append(True)):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        assert not stopped
        signal.raise_signal(signal.SIGINT)
    assert asked == [signal.SIGTERM]
    assert stopped == [True]


def test_the_former_signal_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with termination_signals(lambda _: None):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_server_on_asyncio_awaits_the_first_signal() -> None:
    stopped: list[bool] = []

    async def serve() -> signal.Signals:
        async with termination(lambda: stopped.append(True)) as asked:
            os.kill(os.getpid(), signal.SIGINT)
            number = await asyncio.wait_for(asked, 5)
            os.kill(os.getpid(), signal.SIGINT)
            while not stopped:  # one turn of the loop a time, until it has run the handler
                await asyncio.sleep(0)
            return number

    assert asyncio.run(serve()) is signal.SIGINT
    assert stopped == [True]


def test_ctrl_c_ends_with_130_and_sigterm_with_0() -> None:
    assert exit_code_of(signal.SIGINT) == 130
    assert exit_code_of(signal.SIGTERM) == 0


def test_a_port_with_a_listener_is_busy(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert is_port_busy(HOST, port)
    listener.close()
    assert not is_port_busy(HOST, port)


def test_a_listener_on_all_addresses_or_with_reuseport_makes_a_port_busy() -> None:
    with socket.create_server(("0.0.0.0", 0), reuse_port=True) as server:
        assert is_port_busy(HOST, server.getsockname()[1])


def test_connections_in_time_wait_do_not_make_a_port_busy(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    client = socket.create_connection((HOST, port))
    accepted, _ = listener.accept()
    accepted.close()  # the server closes first, so its end stays in TIME_WAIT
    assert client.recv(1) == b""
    client.close()
    listener.close()
    assert not is_port_busy(HOST, port)


def test_an_address_that_is_not_ours_is_an_error_and_not_a_busy_port() -> None:
    with pytest.raises(OSError, match="assign"):
        is_port_busy("192.0.2.1", 7400)  # RFC 5737: an address of nobody


def test_a_free_port_is_free_and_none_of_those_to_avoid() -> None:
    port = free_port(HOST)
    assert not is_port_busy(HOST, port)
    assert free_port(HOST, avoid=[port]) != port


def test_a_child_has_a_session_of_its_own_and_its_output_is_piped() -> None:
    program = "import os, sys; print(os.getsid(0) == os.getppid(), flush=True); sys.exit(7)"
    child = spawn_child([sys.executable, "-c", program], env={})
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.read() == b"False\n"
    assert child.wait() == 7


def test_a_program_that_cannot_be_run_says_so_and_ends_with_127() -> None:
    child = spawn_child(["/nonexistent/program"], env={})
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.read() == (
            b"error: cannot run /nonexistent/program: No such file or directory\n"
        )
    assert child.wait() == 127


def test_a_child_gets_signals_as_if_from_a_terminal() -> None:
    # Python ignores SIGPIPE, and a child must not inherit that.
    child = spawn_child(["/bin/sh", "-c", "kill -PIPE $$"], env={})
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait() == -signal.SIGPIPE
