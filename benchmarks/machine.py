"""The machine a result belongs to: enough to judge it, nothing that names it."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})


def file_system_of(folder: Path) -> str:
    """The type of the file system that holds ``folder``; empty when the system does not say."""
    target = os.path.realpath(folder)
    best, kind = -1, ""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # a later mount hides an earlier one of the same place
            best, kind = len(point), after.split(" ")[0]
    return kind


def folder_on_disk(wanted: Path | None) -> Path:
    """Where the temporary folder goes: a commit to memory would measure nothing.

    Raises:
        ValueError: there is none, or the one asked for is in memory.

    """
    places = [wanted] if wanted else [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    for place in places:
        if (
            place.is_dir()
            and os.access(place, os.W_OK)
            and file_system_of(place) not in MEMORY_FILE_SYSTEMS
        ):
            return place
    raise ValueError("no folder on a disk; name one with --dir")


def fdatasync_ms(folder: Path, tries: int = 200) -> float:
    """The median time of an 8 kB write and its fdatasync into an existing file, in milliseconds."""
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())
        for i in range(tries):
            began = time.perf_counter()
            os.pwrite(file.fileno(), os.urandom(8192), (i % 128) * 8192)
            sync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(folder: Path, postgres_version: str) -> str:
    """One line: CPU, cores, memory, kernel, Python, PostgreSQL, disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_cpu_model()}, {cores} cores, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, PostgreSQL {postgres_version}, "
        f"{file_system_of(folder) or 'file system unknown'}, "
        f"write + fdatasync {fdatasync_ms(folder):.2f} ms"
    )
