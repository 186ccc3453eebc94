"""The state of a file of the repository, as a fold of its events.

It looks at one path alone. So the lines of a file that came by a rename are not known: they are in
the history of the path that it had before (the projection `folders` sees both).
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from everstate.folds import Fold, FoldEvent


@dataclass(slots=True)
class File:
    """What is known of a path. Times are those of the commits, in UTC."""

    alive: bool = False
    lines: int | None = 0
    changes: int = 0
    added: int = 0
    deleted: int = 0
    renamed_from: str | None = None
    renamed_to: str | None = None
    first_commit: str = ""
    first_time: str = ""
    last_commit: str = ""
    last_time: str = ""


class FileFold(Fold[File]):
    """A file: whether it is there, its lines, its first and last commit, where it went."""

    entity_type = "file"
    version = 1

    def initial(self) -> File:
        """A path that was never there."""
        return File()

    def apply(self, state: File, event: FoldEvent) -> File:
        """Goes on by a commit."""
        data = event.data
        # A binary file has no lines: its counts are null.
        added, deleted = data.get("added") or 0, data.get("deleted") or 0
        match event.type:
            case "FileAdded":
                state.alive = True
                state.renamed_from, state.renamed_to = data.get("renamed_from"), None
                state.lines = None if state.renamed_from else added
            case "FileModified":
                if state.lines is not None:
                    state.lines += added - deleted
            case "FileRenamed":
                state.alive, state.lines, state.renamed_to = False, 0, data["to"]
            case "FileDeleted":
                state.alive, state.lines = False, 0
        state.changes += 1
        state.added += added
        state.deleted += deleted
        time = event.time.isoformat()
        if not state.first_commit:
            state.first_commit, state.first_time = data["commit"], time
        state.last_commit, state.last_time = data["commit"], time
        return state

    def load(self, payload: bytes, type: str) -> File:  # noqa: A002, ARG002
        """A snapshot's state. (It is dumped as JSON, as folds are unless they say otherwise.)"""
        return File(**orjson.loads(payload))
