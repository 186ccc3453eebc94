"""``python -m benchmarks.profile node|client --scenario append_stream/256 --seconds 5``.

Runs one scenario with the node, or this process (the client), under cProfile and prints the
functions that took most time. cProfile costs Python calls more than C calls and slows all: read
shares, not rates.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import folder_on_disk
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.stack import SERVE, Stack, run, temporary_folder
from benchmarks.workspace import Workspace

TOP = 40


async def _run(
    stack: Stack, scenario: Scenario, seconds: float, profile: cProfile.Profile | None
) -> None:
    space = Workspace(stack)
    try:
        for needed in [*(SCENARIOS[identifier] for identifier in scenario.needs), scenario]:
            await needed.prepare(space)
            await needed.run(space, min(1.0, seconds))
        if profile is None:
            stack.node.process.send_signal(signal.SIGUSR1)
        else:
            profile.enable()
        try:
            sample = await scenario.run(space, seconds)
        finally:
            if profile is None:
                stack.node.process.send_signal(signal.SIGUSR2)
            else:
                profile.disable()
    finally:
        await stack.aclose()
    print(f"{scenario.id} under the profile: {sample.value:,.0f} {scenario.unit} {sample.note}")


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("process", choices=("node", "client"))
    parser.add_argument("--scenario", default="append_stream/256", choices=sorted(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--sort", default="tottime", choices=("tottime", "cumtime", "ncalls"))
    parser.add_argument("--top", type=int, default=TOP)
    parser.add_argument("--out", type=Path, help="keep the statistics here (snakeviz, pstats)")
    parser.add_argument("--dir", type=Path, help="a folder on a disk for the database")
    options = parser.parse_args(words)
    scenario = SCENARIOS[options.scenario]
    if scenario.once and options.process == "node":
        parser.error(f"{scenario.id} starts nodes of its own; profile another scenario")
    with temporary_folder(folder_on_disk(options.dir)) as folder:
        stats = folder / "node.prof"
        profile = cProfile.Profile() if options.process == "client" else None
        runner = (sys.executable, "-m", "benchmarks.profiled_node", str(stats))
        stack = Stack(folder, SERVE if profile else runner)
        with contextlib.closing(stack):
            stack.open()
            run(_run(stack, scenario, options.seconds, profile))
        # The node has ended by now, so its file is whole.
        found = pstats.Stats(profile or str(stats), stream=sys.stdout)
        if options.out:
            found.dump_stats(options.out)
    found.strip_dirs().sort_stats(options.sort).print_stats(options.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
