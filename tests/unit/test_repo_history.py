"""The sample: its data against what git recorded, its plot, and its folder projection by hand."""

from __future__ import annotations

import importlib.util
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from tests import repo_history as history
from tests.support import ROOT, SAMPLE_ENTITIES

FOLDER = ROOT / "samples" / "repo_history"
LINES = history.lines_of_the_sample()
SVG = "{http://www.w3.org/2000/svg}"


def module(name: str) -> ModuleType:
    """A module of the sample, which is no package of ours."""
    spec = importlib.util.spec_from_file_location(f"sample_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


plot = module("plot")


def table() -> list[Mapping[str, object]]:
    return [
        {"folder": folder, "month": month.isoformat(), "lines": row[3]}
        for (folder, month), row in history.folders(LINES).items()
    ]


# -- the fold against git --------------------------------------------------------------------------


def test_every_path_has_one_row_and_every_event_counts() -> None:
    rows = history.files(LINES)
    assert len(rows) == SAMPLE_ENTITIES
    assert sum(changes for changes, *_ in rows.values()) == len(LINES)
    assert rows["psycopg/docs/news.rst"] == (306, 1136, 375, True)


def test_git_deletes_as_many_lines_as_the_fold_has_counted() -> None:
    # When git deletes a file it removes every line of it. A rename with edits has lost the count of
    # its removed lines, so the fold may have more; a second add by another branch adds nothing.
    deletions = 0
    before: dict[str, int] = {}
    moved: set[str] = set()
    for step in history.steps(LINES):
        path, data = step.line["entity_id"], step.line["data"]
        if "renamed_from" in data:
            moved.add(path)
        if step.line["type"] == "FileDeleted" and data["deleted"] is not None:
            deletions += 1
            counted = before[path]
            assert counted == data["deleted"] or (path in moved and counted > data["deleted"]), path
        before[path] = step.lines
        assert step.lines >= 0, path
    assert deletions == 56


def test_a_path_is_alive_when_its_last_span_is_open() -> None:
    spans = history.spans(LINES)
    alive = {path for path, row in history.files(LINES).items() if row[3]}
    assert {path for path, _, end in spans if end is None} == alive
    assert len(alive) == 375
    # A file that was deleted and came back has two spans.
    assert len(spans) == SAMPLE_ENTITIES + 5
    assert all(end is None or begin <= end for _, begin, end in spans)


def test_spans_give_the_files_of_a_date() -> None:
    day = datetime(2021, 5, 1, tzinfo=UTC)
    files = {
        path
        for path, begin, end in history.spans(LINES)
        if begin <= day and (end is None or end > day)
    }
    # The package was renamed later in that month.
    assert "psycopg/psycopg3/psycopg3/pool/pool.py" in files
    assert not any(path.startswith("psycopg/psycopg_pool/") for path in files)


def test_the_lines_of_all_folders_are_those_of_all_files() -> None:
    rows = history.folders(LINES)
    last = max(month for _, month in rows)
    assert last == date(2026, 7, 1)
    sizes: dict[str, int] = {}
    for step in history.steps(LINES):
        sizes[step.line["entity_id"]] = step.lines
    assert sum(row[3] for (_, month), row in rows.items() if month == last) == sum(sizes.values())


# -- the plot --------------------------------------------------------------------------------------


def test_the_plot_is_well_formed_and_shows_every_folder() -> None:
    svg = ET.fromstring(plot.draw(table()))
    folders = {row["folder"] for row in table()}
    texts = {element.text for element in svg.iter(f"{SVG}text")}
    assert {str(folder) for folder in folders - {"."}} <= texts
    assert {"(top level)", "2021", "2026", "all: 90,936 lines"} <= texts
    assert len(list(svg.iter(f"{SVG}polygon"))) == len(folders) == 10


def test_the_bands_of_the_plot_fill_the_height_that_the_lines_have() -> None:
    svg = ET.fromstring(plot.draw(table()))
    ys = [
        float(point.split(",")[1])
        for polygon in svg.iter(f"{SVG}polygon")
        for point in polygon.attrib["points"].split()
    ]
    scale = (plot.HEIGHT - plot.TOP - plot.BOTTOM) / 100_000
    assert max(ys) == plot.HEIGHT - plot.BOTTOM
    assert min(ys) == pytest.approx(plot.HEIGHT - plot.BOTTOM - 90_936 * scale, abs=0.1)


def test_labels_of_the_plot_do_not_overlap() -> None:
    found = [plot.Band(str(i), [1, i % 3]) for i in range(11)]
    middles = [500.0 - i for i in range(11)]
    shown = [line for line in plot._legend(found, middles, 9) if "start" in line]
    places = sorted(float(ET.fromstring(line).attrib["y"]) for line in shown)
    assert all(b - a >= 18.9 for a, b in pairwise(places))
    assert places[0] >= plot.TOP
    assert places[-1] <= plot.HEIGHT


def test_many_folders_share_the_last_band_of_the_plot() -> None:
    months = ("2020-01-01", "2020-02-01")
    rows = [{"folder": f"f{i}", "month": m, "lines": i + 1} for i in range(30) for m in months]
    _, found = plot.bands(rows)
    assert len(found) == len(plot.COLOURS)
    assert found[-1] == plot.Band("others", [sum(range(1, 21))] * 2)


def test_names_of_folders_cannot_break_the_plot() -> None:
    months = ("2020-01-01", "2020-02-01")
    rows = [{"folder": "<a&b>", "month": month, "lines": 3} for month in months]
    assert "<a&b>" in {element.text for element in ET.fromstring(plot.draw(rows)).iter()}


def test_a_plot_of_nothing_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="has the sample been imported"):
        plot.draw([])


@pytest.mark.parametrize(("top", "step"), [(1, 1), (7, 1), (8, 2), (90_936, 20_000), (30, 5)])
def test_the_grid_has_round_steps(top: int, step: int) -> None:
    assert plot.step_of(top) == step


def test_the_plot_asks_where_dev_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "everstate.env").write_text("EVERSTATE_ADMIN_URL='http://127.0.0.1:1'\n")
    assert plot.admin_url({"EVERSTATE_DEV_DIR": str(tmp_path)}) == "http://127.0.0.1:1"
    assert plot.admin_url({"EVERSTATE_ADMIN_URL": "http://x"}) == "http://x"
    with pytest.raises(SystemExit, match="start `everstate dev` first"):
        plot.admin_url({"EVERSTATE_DEV_DIR": str(tmp_path / "none")})
