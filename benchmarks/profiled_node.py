"""`everstate` under cProfile: ``python -m benchmarks.profiled_node STATS serve …``.

SIGUSR1 begins a profile (so that the start and the warm-up are not in it), SIGUSR2 ends it and
writes the file STATS; so does the end of the program. Only the main thread is profiled: that is
where the node's event loop runs.
"""

from __future__ import annotations

import cProfile
import signal
import sys
from pathlib import Path

from everstate.cli import main


def run(stats: Path, words: list[str]) -> None:
    """Runs the command line ``words``."""
    profile = cProfile.Profile()
    begun = False

    def begin(_number: int, _frame: object) -> None:
        nonlocal begun
        begun = True
        profile.enable()

    def end(_number: int = 0, _frame: object = None) -> None:
        nonlocal begun
        if begun:
            begun = False
            profile.disable()
            profile.dump_stats(stats)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    sys.argv = ["everstate", *words]
    try:
        main()
    finally:
        end()


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
