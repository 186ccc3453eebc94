"""Lines of code per top folder and month, from the history of a repository's files.

A file's row cannot say this: a month sums over files, and a rename carries lines from one path to
another. So this projection is Python, keeps the lines of each file in a table of its own, and runs
in one segment: strictly in the order of the log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date

from everstate.projections import ProjectedEvent, Projection, Tx


@dataclass(slots=True)
class File:
    """What is known of a path: its lines, and the lines that a rename will carry away."""

    lines: int = 0
    moving: int = 0


@dataclass(slots=True)
class Change:
    """What the events of a batch changed in one folder and month."""

    changes: int = 0
    added: int = 0
    deleted: int = 0
    lines: int = 0


class Folders(Projection):
    """Table ``folders``: a row for every folder and month from the folder's first month on.

    ``month`` is its first day, by the commits' times in UTC. ``changes``, ``added``, ``deleted``
    happened in the month; ``lines`` are those of all the folder's files at its end. A removal that
    git did not count (lines that a rename dropped) is made good when the file is deleted.
    """

    name = "folders"
    version = 1
    entity_types = ("file",)
    event_types = ("FileAdded", "FileModified", "FileDeleted", "FileRenamed")
    tables = """
        CREATE TABLE folders (
          folder  text NOT NULL,
          month   date NOT NULL,
          changes bigint NOT NULL,
          added   bigint NOT NULL,
          deleted bigint NOT NULL,
          lines   bigint NOT NULL,
          PRIMARY KEY (folder, month)
        );
        CREATE TABLE file_lines (
          path   text PRIMARY KEY,
          lines  bigint NOT NULL,
          moving bigint NOT NULL
        );
    """

    async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
        """Counts a batch in memory and writes what it changed."""
        files = await _known(tx, _paths(events))
        changed: dict[tuple[str, date], Change] = defaultdict(Change)
        for event in events:
            change = changed[folder_of(event.entity_id), _month(event)]
            before = files[event.entity_id].lines
            _count(event, files, change)
            change.lines += files[event.entity_id].lines - before
        await tx.executemany(
            """
            INSERT INTO file_lines (path, lines, moving) VALUES ($1, $2, $3)
            ON CONFLICT (path) DO UPDATE SET lines = EXCLUDED.lines, moving = EXCLUDED.moving
            """,
            [(path, file.lines, file.moving) for path, file in files.items()],
        )
        await _write(tx, changed)


def folder_of(path: str) -> str:
    """``psycopg/tests/test_pq.py`` → ``tests``: a path begins with the repository's name."""
    _, _, inside = path.partition("/")
    folder, slash, _ = inside.partition("/")
    return folder if slash else "."


def _month(event: ProjectedEvent) -> date:
    return event.time.astimezone(UTC).date().replace(day=1)


def _origin(event: ProjectedEvent) -> str | None:
    """The path that a new file was renamed from; it lies in the same repository."""
    name = event.data.get("renamed_from")
    return f"{event.entity_id.partition('/')[0]}/{name}" if name else None


def _paths(events: Iterable[ProjectedEvent]) -> list[str]:
    paths = {event.entity_id for event in events}
    return sorted(paths | {origin for event in events if (origin := _origin(event))})


async def _known(tx: Tx, paths: Sequence[str]) -> dict[str, File]:
    rows = await tx.fetch(
        "SELECT path, lines, moving FROM file_lines WHERE path = ANY($1::text[])", paths
    )
    return {path: File() for path in paths} | {row[0]: File(row[1], row[2]) for row in rows}


def _count(event: ProjectedEvent, files: dict[str, File], change: Change) -> None:
    # A binary file has no lines: its counts are null.
    added, deleted = event.data.get("added") or 0, event.data.get("deleted") or 0
    change.changes += 1
    change.added += added
    change.deleted += deleted
    file = files[event.entity_id]
    match event.type:
        case "FileAdded":
            # Added again while it is there (by another branch), it has the lines of the last time.
            file.lines = added
            if origin := _origin(event):
                file.lines += files[origin].moving
                files[origin].moving = 0
        case "FileModified":
            file.lines += added - deleted
        case "FileRenamed":
            file.lines, file.moving = 0, file.lines
        case "FileDeleted":
            file.lines = 0


async def _write(tx: Tx, changed: dict[tuple[str, date], Change]) -> None:
    # Rows for the months that are new, with the lines of the month before. Times of commits may run
    # backwards, so a month may also be new before the oldest.
    await tx.execute(
        """
        WITH seen AS (
          SELECT folder, month FROM folders
          UNION
          SELECT * FROM unnest($1::text[], $2::date[])
        )
        INSERT INTO folders (folder, month, changes, added, deleted, lines)
        SELECT first.folder, months.month, 0, 0, 0, COALESCE(
          (SELECT lines FROM folders AS earlier
           WHERE earlier.folder = first.folder AND earlier.month < months.month
           ORDER BY earlier.month DESC LIMIT 1), 0)
        FROM (SELECT folder, min(month) AS month FROM seen GROUP BY folder) AS first,
          LATERAL generate_series(
            first.month::timestamp, (SELECT max(month) FROM seen)::timestamp, interval '1 month'
          ) AS months (month)
        ON CONFLICT (folder, month) DO NOTHING
        """,
        [folder for folder, _ in changed],
        [month for _, month in changed],
    )
    await tx.executemany(
        """
        UPDATE folders SET changes = changes + $3, added = added + $4, deleted = deleted + $5
        WHERE folder = $1 AND month = $2
        """,
        [(*key, change.changes, change.added, change.deleted) for key, change in changed.items()],
    )
    # The lines of a month are also there in every later one.
    await tx.executemany(
        "UPDATE folders SET lines = lines + $3 WHERE folder = $1 AND month >= $2",
        [(*key, change.lines) for key, change in changed.items() if change.lines],
    )
