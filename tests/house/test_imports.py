"""What importing Everstate costs, and what it must not drag in."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PYTHON = (sys.executable, "-P", "-c")
DATABASE = {"asyncpg", "sqlalchemy", "alembic"}
SERVERS = {"grpc", "fastapi", "uvicorn", "typer", "pydantic", "google.protobuf"}


def loaded_by(statement: str) -> set[str]:
    """The modules in memory after a statement in a fresh interpreter."""
    said = subprocess.run(
        [*PYTHON, f"{statement}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(said.stdout.split())


def seconds(statement: str) -> float:
    """The best of five fresh interpreters: the least disturbed one."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run([*PYTHON, statement], check=True)
        return time.perf_counter() - began

    return min(once() for _ in range(5))


def test_importing_everstate_takes_less_than_50_ms() -> None:
    assert seconds("import everstate") - seconds("pass") < 0.050


def test_importing_everstate_loads_no_database_and_no_server() -> None:
    assert loaded_by("import everstate") & (DATABASE | SERVERS) == set()


def test_a_client_process_loads_no_database() -> None:
    loaded = loaded_by("from everstate.client import Client")
    assert "grpc" in loaded
    assert loaded & (DATABASE | {"fastapi", "uvicorn", "pydantic"}) == set()
    ours = {"journal.store", "journal.reader", "kernel.database", "sidecar_api.server"}
    assert loaded & ours == set()


def test_the_command_line_loads_a_database_only_when_a_command_needs_it() -> None:
    assert loaded_by("import everstate.cli") & (DATABASE | {"grpc", "fastapi"}) == set()


def test_every_module_of_operations_can_be_the_first_one_that_is_imported() -> None:
    """They need each other: kinds the store, the store the model, the planner the kinds."""
    root = Path(__file__).parents[2]
    names = sorted(
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in (root / "operations").rglob("*.py")
        if path.name != "__init__.py"
    )
    assert "operations.kinds.groups" in names
    loader = "\n".join(
        [
            "import importlib, os, sys",
            f"for name in {names!r}:",
            "    child = os.fork()",
            "    if not child:",
            "        importlib.import_module(name)",
            "        os._exit(0)",
            "    if os.waitpid(child, 0)[1]:",
            "        sys.exit(name)",
        ]
    )
    done = subprocess.run([*PYTHON, loader], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
