"""Child processes that do not outlive the process which started them.

`spawn` starts a program in a session of its own, so that a terminal's Ctrl-C reaches only us, and
makes it die with us, however we die: on Linux by ``PR_SET_PDEATHSIG``, elsewhere (and on Linux when
not called from the main thread, whose end the kernel would take for ours) by a guard process that
waits for the end of a pipe which only we hold open. See `kernel._launch` for what happens between
fork and exec.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

_LAUNCH = str(Path(__file__).with_name("_launch.py"))


@dataclass(frozen=True, slots=True)
class Namespace:
    """Run in a new user namespace: ``uid`` and ``gid`` inside, ourselves outside. Linux only.

    Files keep belonging to us; the program believes to be another user. `user_namespaces(7)`.
    """

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class User:
    """Run as another user, without supplementary groups. Only root may ask for it."""

    uid: int
    gid: int


class BoundProcess:
    """A running program that ends when we end.

    ``pid`` is the program's own pid, also when a guard stands between us. All methods may be called
    from any thread.
    """

    def __init__(self, popen: subprocess.Popen[bytes], pid: int, control: int | None) -> None:
        self._popen = popen
        self._control = control
        self._lock = threading.Lock()
        self.pid = pid

    @property
    def stdout(self) -> IO[bytes] | None:
        """The reading end of the program's output when `spawn` was told to pipe it."""
        return self._popen.stdout

    def poll(self) -> int | None:
        """The exit code, negative for a signal; ``None`` while it runs."""
        return self._ended(self._popen.poll())

    def wait(self, timeout: timedelta | None = None) -> int | None:
        """Wait for the end. Returns what `poll` returns: ``None`` when the time ran out."""
        try:
            seconds = None if timeout is None else max(0.0, timeout.total_seconds())
            return self._ended(self._popen.wait(seconds))
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; a program that has ended gets none, nor does a stranger with its pid."""
        with self._lock:
            if self._control is None:
                self._popen.send_signal(number)
                return
            try:
                os.write(self._control, bytes([number]))
            except BrokenPipeError:
                return  # the guard is gone, and with it the program

    def stop(self, *steps: tuple[signal.Signals, timedelta]) -> int:
        """Send the steps' signals, each with the time it may take, then SIGKILL; wait for the end.

        Returns the exit code, negative for a signal.
        """
        for number, timeout in steps:
            if self.poll() is not None:
                break
            self.send_signal(number)
            if self.wait(timeout) is not None:
                break
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
        code = self.wait()
        assert code is not None
        return code

    def _ended(self, code: int | None) -> int | None:
        if code is not None:
            with self._lock:
                if self._control is not None:
                    os.close(self._control)
                    self._control = None
        return code


def spawn(
    program: Sequence[str | os.PathLike[str]],
    *,
    death_signal: signal.Signals = signal.SIGKILL,
    identity: Namespace | User | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    pass_fds: Sequence[int] = (),
    guard: bool | None = None,
) -> BoundProcess:
    """Start ``program`` in its own session; it gets ``death_signal`` when this process dies.

    ``identity`` says as whom it runs (``None``: as we do). ``guard`` forces (or forbids) the guard
    process; ``None`` takes it where the system offers nothing better.

    A program that cannot be run ends with exit code 127 and one line on its stderr, as a shell's.

    Raises:
        OSError: Not even the launcher could be started.

    """
    if guard is None:
        main_thread = threading.current_thread() is threading.main_thread()
        guard = sys.platform != "linux" or not main_thread
    spec: dict[str, Any] = {
        "parent": os.getpid(),
        "signal": int(death_signal),
        "namespace": [identity.uid, identity.gid] if isinstance(identity, Namespace) else None,
        "user": [identity.uid, identity.gid] if isinstance(identity, User) else None,
        "guard": None,
        "inherited": list(pass_fds),
    }
    control: int | None = None
    report: int | None = None
    handed: list[int] = []
    try:
        if guard:
            theirs, control = os.pipe()
            handed.append(theirs)
            report, their_report = os.pipe()
            handed.append(their_report)
            spec["guard"] = handed
        popen = subprocess.Popen(
            # -I -S: neither the environment nor the user's folder decides what the launcher imports
            [
                sys.executable,
                "-I",
                "-S",
                _LAUNCH,
                json.dumps(spec),
                *(os.fspath(word) for word in program),
            ],
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(*pass_fds, *handed),
            start_new_session=True,
        )
    except BaseException:
        for fd in (control, report):
            if fd is not None:
                os.close(fd)
        raise
    finally:
        for fd in handed:
            os.close(fd)
    pid = popen.pid
    if report is not None:
        with open(report, "rb") as file:
            pid = int(file.readline().strip() or popen.pid)
    return BoundProcess(popen, pid, control)
