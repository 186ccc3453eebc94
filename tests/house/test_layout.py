"""The tree keeps the house rules: sizes, SQL as data, where plpgsql lives."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATEMENTS = sorted(ROOT.glob("*/sql/*.sql"), key=str)
STATEMENTS = [path for path in STATEMENTS if path.parts[-3] != "migrations"]
SCRIPTS = sorted(ROOT.glob("migrations/sql/*.sql"))
SKIPPED = {"generated", "__pycache__", "node_modules", "_build"}


def python_files() -> Iterator[Path]:
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if not name.startswith(".") and name not in SKIPPED]
        yield from (Path(folder, file) for file in files if file.endswith(".py"))


def split(path: Path) -> tuple[str, str]:
    """The header comment of an SQL file, and its statement without comments."""
    text = path.read_text(encoding="utf-8")
    header = re.match(r"(--[^\n]*\n)*", text)
    assert header is not None
    return header[0], re.sub(r"--[^\n]*", "", text[header.end() :])


def name_of(path: Path) -> str:
    return f"{path.parts[-3]}/{path.name}"


def test_no_python_file_is_longer_than_600_lines() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert len(lengths) > 50
    assert {str(path): count for path, count in lengths.items() if count > 600} == {}


def test_there_are_statements_and_scripts_to_look_at() -> None:
    assert len(STATEMENTS) > 20
    assert len(SCRIPTS) > 4


@pytest.mark.parametrize("path", STATEMENTS, ids=name_of)
def test_a_file_holds_one_statement_and_a_header_that_explains_it(path: Path) -> None:
    header, statement = split(path)
    assert ";" not in statement.strip().rstrip(";")
    assert len(header) > 20, "a header says what the statement does"
    if re.search(r"[\w/]+\.sql", header):  # it says which file explains the parameters
        return
    unnamed = set(re.findall(r"\$\d+", statement)) - set(re.findall(r"\$\d+", header))
    assert unnamed == set(), "the header names every parameter"
    if "everstate." in statement:
        assert "$1" in header or "Index" in header


@pytest.mark.parametrize("path", STATEMENTS, ids=name_of)
def test_invariant_14_every_statement_on_events_binds_positions(path: Path) -> None:
    _, statement = split(path)
    scans = re.findall(r"everstate\.events (\w+)", statement)
    assert len(scans) == statement.count("everstate.events")
    for alias in scans:
        bound = rf"\b{alias}\.position BETWEEN|\b{alias}\.position = \$"
        assert re.search(bound, statement), f"{alias} of events has no bounds of positions"


@pytest.mark.parametrize("path", [*STATEMENTS, *SCRIPTS], ids=name_of)
def test_invariant_14_only_the_append_function_writes_logs_and_batches(path: Path) -> None:
    writes = re.findall(
        r"(?:INSERT INTO|UPDATE|DELETE FROM)\s+everstate\.(?:logs|batches|events|entities)\b",
        split(path)[1],
    )
    # A new log begins with its own row and with the batch of position 0.
    allowed = {
        "append_batch_v1.sql": 3,
        "append_batch_v2.sql": 3,
        "append_batch_v3.sql": 3,
        "set_entity_states_v1.sql": 1,
        "create_log_v1.sql": 2,
    }
    assert len(writes) == allowed.get(path.name, 0)


def test_plpgsql_lives_in_migrations_and_its_names_end_in_a_version() -> None:
    for path in STATEMENTS:
        assert "plpgsql" not in path.read_text(encoding="utf-8"), path
    made: list[str] = []
    for path in SCRIPTS:
        for name in re.findall(r"CREATE (?:OR REPLACE )?FUNCTION everstate\.(\w+)", split(path)[1]):
            assert re.fullmatch(r"\w+_v[1-9][0-9]*", name), f"{path.name}: {name}"
            assert path.stem == name, "one function a file, of its name"
            made.append(name)
    assert len(made) == len(set(made)) >= 4
    for path in python_files():
        if "tests" not in path.parts:
            assert "LANGUAGE plpgsql" not in path.read_text(encoding="utf-8"), path


def test_every_sql_file_is_loaded_by_name() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in python_files() if "tests" not in path.parts
    )
    # The reader puts these names together.
    reads = {f"{a}_{b}" for a in ("read", "select") for b in ("forwards", "backwards")}
    stems = {path.stem for path in [*STATEMENTS, *SCRIPTS]}
    assert {stem for stem in stems if f'"{stem}"' not in code} <= reads < stems


def test_every_room_reaches_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rooms = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {"journal", "projections"} <= set(rooms)
    copied = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for room in rooms:
        assert f"COPY {room} {room}" in copied
        assert f"!{room}" in sent
