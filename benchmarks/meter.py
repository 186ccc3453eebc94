"""CPU time by process and memory of a process, from /proc. Elsewhere than on Linux: nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds of CPU used so far: by role, and by the whole machine (idle time apart)."""

    roles: Mapping[str, float]
    busy: float
    total: float


def _stat(pid: int) -> list[str] | None:
    try:
        # After the command's closing bracket: the command may hold anything.
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _seconds(pid: int, *, reaped: bool = False) -> float:
    fields = _stat(pid)
    if fields is None:
        return 0.0
    return sum(map(int, fields[11 : 15 if reaped else 13])) / _TICK


def _children(parent: int) -> list[int]:
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None and int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def read(pids: Mapping[str, int], postmaster: int | None) -> Reading | None:
    """CPU seconds of our processes now; PostgreSQL's with all its backends, past ones included."""
    if not (_PROC / "stat").exists():
        return None
    roles = {role: _seconds(pid) for role, pid in pids.items()}
    if postmaster is not None:
        backends = sum(_seconds(pid) for pid in _children(postmaster))
        roles["postgres"] = backends + _seconds(postmaster, reaped=True)
    cpu = list(map(int, (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]))
    total = sum(cpu) / _TICK
    return Reading(roles, total - (cpu[3] + cpu[4]) / _TICK, total)


def between(before: Reading | None, after: Reading | None, operations: int) -> str:
    """What a round cost: microseconds of CPU an operation by process, and who else was at work."""
    if before is None or after is None or after.total <= before.total:
        return ""
    used = {role: after.roles[role] - before.roles.get(role, 0.0) for role in after.roles}
    others = max(0.0, after.busy - before.busy - sum(used.values())) / (after.total - before.total)
    parts = [
        f"{role} {seconds / operations * 1e6:,.0f}"
        for role, seconds in used.items()
        if operations and seconds / operations >= 5e-7
    ]
    return f"CPU µs/op: {', '.join(parts) or '-'}; others {others:.0%}"


def _status_mb(pid: int, field: str) -> float:
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc says no {field}")


def rss_mb(pid: int) -> float:
    """Resident memory now, in MB (10^6 bytes)."""
    return _status_mb(pid, "VmRSS")


def peak_rss_mb(pid: int) -> float:
    """The most resident memory a process ever had, in MB: the kernel's own mark, no sampling."""
    return _status_mb(pid, "VmHWM")
