"""How fast an operation may go, so that writers and readers do not notice it. Pure, no I/O.

A step is one transaction. Its size follows additive increase, multiplicative decrease (Chiu, Jain
1989): it grows while steps stay short and commits are as quick as they lately were, and is cut when
a commit takes a multiple of that: then others wait for the same disk. Between steps it rests at
least as long as the step took, so that half of a processor's time is left whatever happens; when
writers are seen to wait it rests longer. Projections that fall behind stop it altogether until they
have caught up, unless they stand still, in which case waiting would not help them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

FIRST: Final = 32
"""Items of the first step."""
_LEAST: Final = 4
_CUT: Final = 0.7
"""What is left of a step's size when a commit was slow; the rest after it is doubled besides."""
_SLOWER: Final = 1.5
"""So many times slower appends may be; then operations slow down."""
_MEMORY: Final = 64
"""Commits that are remembered."""
_STANDS_STILL_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Limits:
    """step_s: a step is to take about so long. duty: share of the time that steps may take.
    slow: a commit that takes so many times the best recent one is slow, when it also takes
    slow_s. lag_s: a projection may be so far behind. rest_s: longest rest between two steps.
    """

    step_s: float = 0.1
    duty: float = 0.5
    slow: float = 4.0
    slow_s: float = 0.010
    lag_s: float = 10.0
    rest_s: float = 2.0


DEFAULTS: Final = Limits()


class Rest(NamedTuple):
    """How long to rest, and why longer than usual (empty: it is not)."""

    seconds: float
    reason: str = ""


class Throttle:
    """The pace of one operation. ``most``: items a step at most; ``rate``: items a second."""

    def __init__(self, most: int, rate: float | None = None, limits: Limits = DEFAULTS) -> None:
        self._most = max(most, 1)
        self._rate = rate
        self._limits = limits
        self._size = float(min(FIRST, self._most))
        self._commits: deque[float] = deque(maxlen=_MEMORY)
        self._strain = 1.0

    @property
    def size(self) -> int:
        """Items of the next step."""
        size = max(int(self._size), min(_LEAST, self._most))
        if self._rate is not None:  # a second's worth at most, so that the rate is even
            size = max(1, min(size, int(self._rate)))
        return min(size, self._most)

    def settled(
        self, items: int, step_s: float, commit_s: float, *, writers_slower: float = 1.0
    ) -> Rest:
        """Learns from a step; how long to rest after it.

        ``step_s``: all of the transaction; ``commit_s``: its commit alone; ``writers_slower``: how
        many times slower appends are than they were before (1: not; as nodes tell).
        """
        limits = self._limits
        best = min(self._commits, default=commit_s)
        self._commits.append(commit_s)
        slow = commit_s > limits.slow_s and commit_s > limits.slow * best
        if slow or writers_slower > _SLOWER:
            self._size = max(self._size * _CUT, 1.0)
            self._strain = min(self._strain * 2, 16.0)
        else:
            self._strain = max(self._strain * 0.7, 1.0)
            if step_s > limits.step_s:
                self._size = max(self._size * max(limits.step_s / step_s, 0.5), 1.0)
            elif items >= self.size:
                # Not further than the step's time allows at the pace of this one.
                allowed = self._size * limits.step_s / max(step_s, 1e-6)
                grown = self._size + max(self._most / 10, 1.0)
                self._size = min(grown, allowed, float(self._most))
        rest = step_s * (1 / limits.duty - 1) * self._strain
        reason = ""
        if slow:
            reason = f"commits are slow ({commit_s * 1000:.0f} ms)"
        elif writers_slower > _SLOWER:
            reason = f"appends are {writers_slower:.1f} times slower than before"
        rest = min(rest, limits.rest_s)
        if self._rate is not None and items / self._rate - step_s > rest:
            return Rest(items / self._rate - step_s)
        return Rest(rest, reason)

    def failed(self) -> None:
        """Learns that a step could not be done: the next ones are smaller."""
        self._size = max(self._size / 2, 1.0)


_QUICK_S: Final = 0.008
"""Appends that are as quick as this are not slow, whatever they were before."""
_STRAINED_S: Final = 120.0
"""So long appends may be slow before it is looked whether operations are to blame."""
_QUIET_S: Final = 25.0
"""So long operations then stand still: nodes keep their figures every ten seconds."""
_FORGOTTEN_S: Final = 60.0


class Writers:
    """How much slower appends are than without operations; from what nodes tell now and then.

    Compared is with the best figure seen. When appends stay slow, operations stand still for a
    moment: what appends take then is normal for this time of the day, and is compared with next.
    """

    def __init__(self) -> None:
        self.slower = 1.0
        """So many times slower."""
        self._best = 0.0
        self._seen_at = float("-inf")
        self._strained_at: float | None = None
        self._quiet_until: float | None = None

    @property
    def quiet(self) -> bool:
        """Whether operations are to stand still, so that it can be seen what appends take."""
        return self._quiet_until is not None

    def seen(self, figure: float, now: float) -> None:
        """Learns what appends take, in seconds (0: nobody appends). ``now``: a steady clock's."""
        if now - self._seen_at > _FORGOTTEN_S:  # no operation ran
            self._best, self._strained_at, self._quiet_until = 0.0, None, None
        self._seen_at = now
        if self._quiet_until is not None:
            if now < self._quiet_until:
                return
            self._best, self._strained_at, self._quiet_until = figure, None, None
        elif figure > 0:
            self._best = min(self._best, figure) if self._best > 0 else figure
        self.slower = max(figure / max(self._best, _QUICK_S), 1.0) if self._best > 0 else 1.0
        if self.slower <= _SLOWER:
            self._strained_at = None
        elif self._strained_at is None:
            self._strained_at = now
        elif now - self._strained_at >= _STRAINED_S:
            self._quiet_until = now + _QUIET_S


class Lag(NamedTuple):
    """How far behind a live projection is."""

    name: str
    position: int
    seconds: float


class Lags:
    """Which projection an operation has to wait for.

    One that has not moved for a while (no worker has its code, its statement fails) is not waited
    for: it would wait for ever, and resting does not help it.
    """

    def __init__(self, limits: Limits = DEFAULTS) -> None:
        self._limits = limits
        self._moved: dict[str, tuple[int, float]] = {}

    def waits(self, lags: Iterable[Lag], now: float) -> str:
        """Why to wait; empty: there is no reason. ``now``: seconds of a steady clock."""
        seen: dict[str, tuple[int, float]] = {}
        worst: Lag | None = None
        for lag in lags:
            position, moved_at = self._moved.get(lag.name, (lag.position, now))
            if position != lag.position:
                moved_at = now
            seen[lag.name] = lag.position, moved_at
            behind = lag.seconds > self._limits.lag_s and now - moved_at < _STANDS_STILL_S
            if behind and (worst is None or lag.seconds > worst.seconds):
                worst = lag
        self._moved = seen
        if worst is None:
            return ""
        return f"projection {worst.name} is {worst.seconds:.0f} s behind"
