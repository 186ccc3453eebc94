"""``python -m benchmarks``: measures, prints a table, writes benchmarks/results/latest.{json,md}.

Exit code 0 when everything ran, whether or not targets are met; 1 when a scenario could not run.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, meter, report
from benchmarks.load import Sample
from benchmarks.scenarios import GROUPS, Scenario, select
from benchmarks.stack import ROOT, Stack, temporary_folder
from benchmarks.stack import run as run_until_done
from benchmarks.workspace import Workspace


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        name = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("-dirty" if changed else "")


class Suite:
    """One run."""

    def __init__(self, space: Workspace, seconds: float, rounds: int) -> None:
        self._space = space
        self._seconds = seconds
        self._rounds = rounds
        self.samples: dict[str, list[Sample]] = {}
        self.costs: dict[str, list[str]] = {}
        self.failures: dict[str, str] = {}

    async def run(self, chosen: Sequence[str]) -> None:
        """Runs what was chosen, group by group."""
        for group in GROUPS:
            members = [scenario for scenario in group if scenario.id in chosen]
            if members:
                await self._group(members)
        for identifier in self.failures:
            self.samples.pop(identifier, None)

    async def _group(self, members: Sequence[Scenario]) -> None:
        for scenario in members:
            with self._failing(scenario):
                await scenario.prepare(self._space)
        if not all(scenario.once for scenario in members):
            for scenario in members:
                with self._failing(scenario):
                    if scenario.id not in self.failures:
                        await scenario.run(self._space, min(1.0, self._seconds / 2))
        for number in range(self._rounds):
            for scenario in members:
                if scenario.id in self.failures or (scenario.once and number):
                    continue
                with self._failing(scenario):
                    await self._round(scenario)

    async def _round(self, scenario: Scenario) -> None:
        stack = self._space.stack
        before = stack.cpu()
        sample = await scenario.run(self._space, self._seconds)
        cost = ""
        if not scenario.once:  # those have nodes of their own, which `cpu` knows nothing of
            cost = meter.between(before, stack.cpu(), sample.operations)
        self.samples.setdefault(scenario.id, []).append(sample)
        self.costs.setdefault(scenario.id, []).append(cost)
        latency = "" if sample.p50_ms is None else f"  p50 {sample.p50_ms:.2f}"
        latency += "" if sample.p99_ms is None else f" p99 {sample.p99_ms:.2f} ms"
        say(
            f"{scenario.id:<20} {sample.value:>10,.0f} {scenario.unit}{latency}"
            f"  {sample.note}{'; ' if sample.note and cost else ''}{cost}"
        )

    @contextlib.contextmanager
    def _failing(self, scenario: Scenario) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the others go on, the exit code tells
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            reason = f"{type(error).__name__}: {error}"
            self.failures[scenario.id] = reason
            say(f"{scenario.id:<20} could not run: {reason}")


async def measure(
    stack: Stack, chosen: Sequence[str], seconds: float, rounds: int
) -> tuple[Suite, str]:
    """Runs the suite; returns it and the server's version."""
    suite = Suite(Workspace(stack), seconds, rounds)
    try:
        version: str = await (await stack.connection()).fetchval("SHOW server_version")
        await suite.run(chosen)
    finally:
        await stack.aclose()
    return suite, version.split(" ", maxsplit=1)[0]


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="only scenarios whose id, or a part of it between _ and /, begins with NAME, and what "
        "they are compared with; several: repeat it or use commas",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round [4]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; their median counts [3]")
    parser.add_argument("--dir", type=Path, help="a folder on a disk for the database")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where the results go")
    parser.add_argument("--list", action="store_true", help="show what would run and stop")
    found = parser.parse_args(words)
    if found.seconds <= 0 or found.rounds < 1:
        parser.error("--seconds and --rounds have to be positive")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _arguments(words)
    try:
        chosen = select([name for item in options.only for name in item.split(",") if name])
    except ValueError as error:
        say(str(error))
        return 2
    if options.list:
        print("\n".join(chosen))
        return 0
    began = time.monotonic()
    run = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    commit = _commit()
    try:
        place = machine.folder_on_disk(options.dir)
    except ValueError as error:
        say(str(error))
        return 1
    with temporary_folder(place) as folder:
        stack = Stack(folder)
        with contextlib.closing(stack):
            say("starting PostgreSQL")
            stack.open()
            suite, version = run_until_done(measure(stack, chosen, options.seconds, options.rounds))
        facts = report.RunFacts(run, commit, machine.describe(folder, version))
    new = report.rows_of(suite.samples, facts)
    rows = report.merge(report.load(options.results / "latest.json"), new, chosen)
    report.write(
        rows,
        report.document(rows, facts, suite.samples, suite.costs, suite.failures),
        options.results,
    )
    print(report.table(rows))
    print(f"\n{facts.machine}\n{time.monotonic() - began:.0f} s")
    for row, judged in report.verdicts(rows).items():
        for target, met in judged:
            if met is not True:
                print(f"{'not met' if met is False else 'not measured'}: {row} {target}")
    for identifier, reason in suite.failures.items():
        print(f"could not run: {identifier}: {reason}")
    return 1 if suite.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
