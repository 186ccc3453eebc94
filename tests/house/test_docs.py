"""Prose stays true: links lead somewhere, commands and variables exist, the first example runs."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from everstate.cli import app
from everstate.settings import AdminSettings, NodeSettings, WorkerSettings
from sidecar_api.server import NodeServer

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "samples").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
    if "_build" not in path.parts
)

# Names that are promised (other people's scripts may set them) before a program reads them.
CONTRACTED = {
    "EVERSTATE_ADMIN_PORT",
    "EVERSTATE_ADMIN_URL",
    "EVERSTATE_ARCHIVE_URL",
    "EVERSTATE_TOKEN",
    "EVERSTATE_TOKEN_FILE",
    "EVERSTATE_WORKER_METRICS_PORT",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(
        r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_there_are_pages() -> None:
    names = {name_of(path) for path in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} <= names
    assert len(names) > 25


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), f"{link} leads nowhere"
        assert target.resolve().is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def shown_commands(text: str) -> Iterator[str]:
    """The `everstate …` commands of a page: lines of code blocks, and inline code."""
    for block in re.findall(r"^```(?:sh|console|text)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^|[\s/|(])everstate ((?:[a-z-]).*)$", line):
                if line.lstrip().startswith(("#", "error:", "hint:")) or "pip install" in line:
                    continue
                yield found[1]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`everstate ([^`]+)`", prose)


def wrong_with(command: str) -> str | None:
    """What is wrong with a command, as words of the `everstate` program."""
    node: Any = get_command(app)
    command = re.split(r" (?:\||&&|;|>|#|→|2>)|\[OPTION", command)[0]
    for word in shlex.split(command.replace("…", "")):
        if word.startswith("-"):
            flag = word.partition("=")[0]
            known = {name for param in node.params for name in param.opts}
            if flag not in known | {"--help"}:
                return f"{command}: no option {flag}"
        elif hasattr(node, "commands"):
            if word == "COMMAND":
                return None
            if word not in node.commands:
                return f"{command}: no command {word}"
            node = node.commands[word]
    return None


def test_a_command_that_is_not_there_would_be_found() -> None:
    assert wrong_with("log verify --json") is None
    assert wrong_with("import FILE --rate 10 | cat") is None
    assert wrong_with("log prove") is not None
    assert wrong_with("import FILE --speed 10") is not None
    text = "```sh\n.venv/bin/everstate frob --x\n```\nand `everstate log prove`"
    assert list(shown_commands(text)) == ["frob --x", "log prove"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_shown_exist(page: Path) -> None:
    found = map(wrong_with, shown_commands(page.read_text(encoding="utf-8")))
    assert [problem for problem in found if problem] == []


def known_variables() -> set[str]:
    files = [
        *(
            path
            for room in ("everstate", "kernel", "sidecar_api")
            for path in (ROOT / room).rglob("*.py")
        ),
        *(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
        ROOT / "docker-compose.yml",
    ]
    in_code = {
        name
        for path in files
        for name in re.findall(r"\bEVERSTATE_[A-Z][A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))
    }
    fields = NodeSettings.model_fields.keys() | AdminSettings.model_fields.keys()
    fields |= WorkerSettings.model_fields.keys()
    return in_code | {f"EVERSTATE_{name.upper()}" for name in fields}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_variables_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"\bEVERSTATE_[A-Z][A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
    assert named - known_variables() - CONTRACTED == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_that_are_shown_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text, re.MULTILINE)
    assert set(shown) <= targets


def examples(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [path for path in PAGES if examples(path)], ids=name_of)
async def test_python_examples_run_against_a_node(page: Path, node: NodeServer) -> None:
    for example in examples(page):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", example.replace(":7400/", f":{node.port}/"),
            cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, complained = await process.communicate()
        assert process.returncode == 0, complained.decode()
        # What an example prints stands beside the print, as a comment.
        wanted = re.findall(r"print\(.*\)  # (.+)$", example, re.MULTILINE)
        assert [line for line in wanted if line not in said.decode().splitlines()] == []


def test_an_example_is_looked_at() -> None:
    assert examples(ROOT / "README.md")
