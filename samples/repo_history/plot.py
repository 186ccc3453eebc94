"""Draws the read model `folders`: lines of code per top folder and month, as an SVG.

    .venv/bin/python samples/repo_history/plot.py [FILE.svg]

It asks the query API of a running `everstate dev` (EVERSTATE_ADMIN_URL, or what dev wrote into its
folder) and needs nothing beyond Python.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1040, 600
LEFT, RIGHT, TOP, BOTTOM = 76, 206, 92, 56
# Neighbours differ in hue and in lightness, so that they also differ in grey and to most eyes.
COLOURS = (
    "#1b4965", "#3d8eb9", "#9ad1d4", "#2f6b4f", "#84b26a", "#d9dd92", "#e0a458", "#b5543c",
    "#7a3e65", "#b98fb4", "#8d8d8d",
)  # fmt: skip
INK, FAINT, GRID = "#1f2933", "#5f6c7b", "#e3e8ee"
SHOWN = len(COLOURS) - 1
"""Folders with a colour of their own; the smaller ones are drawn as one."""
NAMES = {".": "(top level)"}


# -- reading -------------------------------------------------------------------------------------


def admin_url(env: Mapping[str, str]) -> str:
    """Where `everstate dev` answers: EVERSTATE_ADMIN_URL, or what dev wrote into its folder."""
    if url := env.get("EVERSTATE_ADMIN_URL"):
        return url
    file = Path(env.get("EVERSTATE_DEV_DIR") or ".everstate", "everstate.env")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "EVERSTATE_ADMIN_URL":
            return value.strip("'\"")
    raise SystemExit(f"error: {file} names no EVERSTATE_ADMIN_URL; start `everstate dev` first")


def rows(url: str, token: str = "") -> Iterator[Mapping[str, object]]:
    """Every row of the table, page by page."""
    if not url.startswith(("http://", "https://")):
        raise SystemExit(f"error: EVERSTATE_ADMIN_URL: {url!r} is no HTTP address")
    following = ""
    while True:
        query = urllib.parse.urlencode({"limit": 1000} | ({"next": following} if following else {}))
        request = urllib.request.Request(f"{url}/api/v1/read/folders/folders?{query}")  # noqa: S310
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                page = json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise SystemExit(f"error: {url} answers {error.code}: {said}") from None
        except OSError as error:
            raise SystemExit(f"error: {url} does not answer: {error}") from None
        yield from page["rows"]
        following = page.get("next") or ""
        if not following:
            return


# -- drawing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """A folder's lines, one figure a month."""

    folder: str
    lines: Sequence[int]


def bands(table: Iterable[Mapping[str, object]]) -> tuple[list[str], list[Band]]:
    """The months, and the folders' bands from the bottom up: those that last and are large first.

    A folder without a row for a month had no file yet.
    """
    lines: dict[str, dict[str, int]] = {}
    for row in table:
        # A rename that dropped lines can leave a folder a few short until its file is deleted.
        figure = max(0, int(str(row["lines"])))
        lines.setdefault(str(row["folder"]), {})[str(row["month"])[:7]] = figure
    months = sorted({month for folder in lines.values() for month in folder})
    full = {name: [folder.get(month, 0) for month in months] for name, folder in lines.items()}
    order = sorted(full, key=lambda name: (full[name][-1], max(full[name]), name), reverse=True)
    largest = set(sorted(order, key=lambda name: (max(full[name]), name), reverse=True)[:SHOWN])
    found = [Band(name, full[name]) for name in order if name in largest]
    rest = [full[name] for name in order if name not in largest]
    if rest:
        found.append(Band("others", [sum(column) for column in zip(*rest, strict=True)]))
    return months, found


def step_of(top: float) -> int:
    """The distance of the grid's lines: 1, 2 or 5 times a power of ten, at most seven of them."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if top / (size * factor) <= 7:
                return size * factor
        size *= 10


def draw(table: Iterable[Mapping[str, object]]) -> str:
    """The SVG. ``table``: rows with ``folder``, ``month`` (as in 2020-03-01) and ``lines``.

    Raises:
        ValueError: there are fewer than two months.

    """
    months, found = bands(table)
    if len(months) < 2:
        raise ValueError("fewer than two months to draw: has the sample been imported?")
    totals = [sum(column) for column in zip(*(band.lines for band in found), strict=True)]
    step = step_of(max(totals))
    top = -(-max(totals) // step) * step
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(month: float) -> float:
        return LEFT + plot_width * month / (len(months) - 1)

    def y(lines: float) -> float:
        return TOP + plot_height * (1 - lines / top)

    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title" '
        "font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"13\">"
    )
    parts = [
        head,
        '<title id="title">Lines of code per top folder and month</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 38, "Where the lines of psycopg are", size=22, weight=600),
        _text(
            LEFT, 62,
            f"Lines per top folder at the end of each month, {_name(months[0])} to "
            f"{_name(months[-1])}",
            fill=FAINT,
        ),
    ]  # fmt: skip
    parts += _grid(months, step, top, x, y)
    floor = [0] * len(months)
    middles: list[float] = []
    for band, colour in zip(found, COLOURS, strict=False):
        ceiling = [a + b for a, b in zip(floor, band.lines, strict=True)]
        parts.append(_area(band, colour, floor, ceiling, x, y))
        middles.append((y(floor[-1]) + y(ceiling[-1])) / 2)
        floor = ceiling
    parts += _axis(months, x)
    parts += _legend(found, middles, totals[-1])
    return "\n".join([*parts, "</svg>", ""])


def _grid(
    months: Sequence[str], step: int, top: int, x: Callable[[float], float],
    y: Callable[[float], float],
) -> Iterator[str]:  # fmt: skip
    for lines in range(0, top + 1, step):
        yield _line(LEFT, y(lines), x(len(months) - 1), y(lines), GRID)
        yield _text(LEFT - 10, y(lines) + 4, f"{lines:,}", anchor="end", fill=FAINT)
    yield _text(LEFT - 10, TOP - 14, "lines", anchor="end", fill=FAINT)


def _area(
    band: Band, colour: str, floor: Sequence[int], ceiling: Sequence[int],
    x: Callable[[float], float], y: Callable[[float], float],
) -> str:  # fmt: skip
    # Only where there is something: no hairlines along the other bands.
    drawn = [i for i, lines in enumerate(band.lines) if lines]
    first, last = max(0, drawn[0] - 1), min(len(floor) - 1, drawn[-1] + 1)
    months = range(first, last + 1)
    points = [f"{x(i):.1f},{y(ceiling[i]):.1f}" for i in months]
    points += [f"{x(i):.1f},{y(floor[i]):.1f}" for i in reversed(months)]
    peak = max(band.lines)
    return (
        f'<polygon points="{" ".join(points)}" fill="{colour}" stroke="#ffffff" '
        f'stroke-width="0.6" stroke-linejoin="round"><title>{escape(_label(band.folder))}: '
        f"{band.lines[-1]:,} lines, at most {peak:,}</title></polygon>"
    )


def _axis(months: Sequence[str], x: Callable[[float], float]) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    yield _line(LEFT, bottom, x(len(months) - 1), bottom, INK)
    for index, month in enumerate(months):
        if month.endswith("-01"):
            yield _line(x(index), bottom, x(index), bottom + 6, INK)
            yield _text(x(index), bottom + 22, month[:4], anchor="middle", fill=FAINT)
    yield _text(
        (LEFT + x(len(months) - 1)) / 2, bottom + 44,
        "month of the commits (UTC); a year's mark is its January", anchor="middle", fill=FAINT,
    )  # fmt: skip


def _legend(found: Sequence[Band], middles: Sequence[float], total: int) -> Iterator[str]:
    """Names beside the bands they belong to, moved apart where bands are thin."""
    gap, left = 19.0, WIDTH - RIGHT + 26
    places = list(middles)
    for i in range(1, len(places)):  # bottom up: y falls
        places[i] = min(places[i], places[i - 1] - gap)
    overflow = TOP + 14 - places[-1]
    if overflow > 0:
        places = [place + overflow for place in places]
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], max(middles[i], places[i + 1] + gap))
    for band, colour, place, middle in zip(found, COLOURS, places, middles, strict=False):
        yield _line(WIDTH - RIGHT + 4, middle, left - 4, place, colour)
        yield (
            f'<rect x="{left}" y="{place - 6:.1f}" width="12" height="12" rx="2" fill="{colour}"/>'
        )
        yield _text(left + 18, place + 4, _label(band.folder))
        gone = not band.lines[-1]
        figure = "gone" if gone else f"{band.lines[-1]:,}"
        yield _text(WIDTH - 16, place + 4, figure, anchor="end", fill=FAINT)
    yield _text(WIDTH - 16, TOP - 14, f"all: {total:,} lines", anchor="end", fill=FAINT)


def _label(folder: str) -> str:
    return NAMES.get(folder, folder)


def _name(month: str) -> str:
    names = "January February March April May June July August September October November December"
    return f"{names.split()[int(month[5:7]) - 1]} {month[:4]}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        'stroke-width="1"/>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = INK, size: int = 13,
    weight: int = 400,
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def main() -> None:
    """Reads, draws, writes."""
    parser = argparse.ArgumentParser(description="Draw the read model `folders` as an SVG.")
    parser.add_argument("file", nargs="?", default="folders.svg", help="default: folders.svg")
    target = Path(parser.parse_args().file)
    table = list(rows(admin_url(os.environ), os.environ.get("EVERSTATE_TOKEN", "")))
    try:
        svg = draw(table)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    try:
        target.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"error: {target}: {error.strerror}") from None
    sys.stdout.write(f"{target}: {len(table)} rows, {len(svg)} bytes\n")


if __name__ == "__main__":
    main()
