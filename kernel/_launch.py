"""Runs one program that must not outlive the process which started it; `kernel.processes` uses it.

This file is executed as a script (``python -I -S kernel/_launch.py SPEC PROGRAM ARGUMENT…``) and
never imported by the rest of Everstate. It exists so that `kernel.processes` needs no
``preexec_fn``: Python code between fork and exec of a process with threads (gRPC has some) may
deadlock, and a helper that is a program of its own may do what it likes. It imports little, for it
stands in every start: about 20 ms.

SPEC is JSON: ``parent`` (pid), ``signal`` (number that the program gets when the parent dies),
``namespace`` ([uid, gid] inside of a new user namespace) or null, ``user`` ([uid, gid] to become)
or null, ``guard`` ([control fd, report fd]) or null, ``inherited`` (fds that the program gets).

The order matters: the kernel forgets PR_SET_PDEATHSIG when a process changes its user (prctl(2)),
so identity comes first, then the pact, then the look whether the parent is still there, then exec.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_CANNOT_RUN = 127
# How long a program may take to obey after its parent died, before the guard kills it. PostgreSQL
# kills its own children 5 s after an immediate shutdown began.
_GRACE_SECONDS = 8.0


# Now and not when needed: another user may not reach Python's folder.
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _enter_namespace(uid: int, gid: int) -> None:
    """Be ``uid`` in a new user namespace, and who we are outside of it: user_namespaces(7)."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {outer_uid} 1"),
        ("gid_map", f"{gid} {outer_gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _die_with(parent: int, number: int) -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        # The parent died before the pact was made: nobody would ever send the signal.
        os._exit(128 + number)


def _run(spec: dict[str, Any], parent: int, program: list[str]) -> NoReturn:
    try:
        # Python ignores SIGPIPE and SIGXFSZ, and a shell's `&` ignores SIGINT and SIGQUIT: ignored
        # signals survive exec, and the program should get them as if from a terminal.
        for name in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGCHLD"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if spec["namespace"] is not None:
            _enter_namespace(*spec["namespace"])
        if spec["user"] is not None:
            _become(*spec["user"])
        if sys.platform == "linux":
            _die_with(parent, spec["signal"])
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"error: cannot run {program[0]}: {error.strerror or error}\n")
        sys.stderr.flush()
        os._exit(_CANNOT_RUN)


def _end_like(status: int) -> NoReturn:
    """End in the very way in which the program ended, so that our parent sees its status."""
    if os.WIFSIGNALED(status):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program's core is enough
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _guard(spec: dict[str, Any], program: list[str]) -> NoReturn:
    """Stay as the program's parent: hand on signals, end it when our own parent is gone.

    Our parent holds the only writing end of ``control``. A byte is the number of a signal to send:
    as the guard alone reaps the program, a signal never hits a stranger that got its pid. The end
    of the file means that the parent is dead.
    """
    import select
    import time

    control, report = spec["guard"]
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for fd in (control, report, woken, wake):
            os.close(fd)
        _run(spec, guard, program)
    os.write(report, b"%d\n" % child)
    os.close(report)
    # Whoever reads the program's output waits for its end: the guard must not hold it open.
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    for fd in spec["inherited"]:
        os.close(fd)

    watched = [control, woken]
    kill_at: float | None = None
    while True:
        left = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select(watched, [], [], left)
        if woken in ready:
            os.read(woken, 4096)
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            _end_like(status)
        if control in ready:
            numbers = os.read(control, 64)
            for number in numbers:
                os.kill(child, number)
            if not numbers:
                watched.remove(control)
                os.kill(child, spec["signal"])
                kill_at = time.monotonic() + _GRACE_SECONDS
        if kill_at is not None and time.monotonic() >= kill_at:
            os.kill(child, signal.SIGKILL)
            kill_at = None


def main() -> NoReturn:
    spec = json.loads(sys.argv[1])
    if spec["guard"] is not None:
        _guard(spec, sys.argv[2:])
    _run(spec, spec["parent"], sys.argv[2:])


if __name__ == "__main__":
    main()
