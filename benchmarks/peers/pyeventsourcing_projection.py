"""A projection of pyeventsourcing 9.5.6 (``eventsourcing``) on PostgreSQL, in its own process.

Chosen, so that it shows what it can do and not what we made of it:

- Its `ProjectionRunner` with a materialised view in PostgreSQL, written as its documentation writes
  one: a `PostgresTrackingRecorder` whose method runs the upsert and `_insert_tracking` in one
  transaction with prepared statements. That is its exactly once: one transaction an event.
- The view (one upsert) and not an `EventSourcedProjection`, which would load and save aggregates.
- Its own defaults for the subscription: it pulls 500 notifications at a time in a thread, while
  another thread processes them. psycopg 3 with its C implementation (checked), Unix socket.
- Events are `DomainEvent` dataclasses with its JSON transcoder, a filler makes their state as long
  as our payloads. They are stored in bulk by its own application recorder.
- Durability, server and settings are those that Everstate gets; its tables are in a database of
  their own.

Reads commands (JSON lines) from standard input and answers on standard output.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import Tracking, TrackingRecorder
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.sql import SQL, Identifier

from benchmarks.load import ramp_of

ENTITIES = 10_000
STATE_BYTES = 256
AT_ONCE = 1_000
PATIENCE_SECONDS = 30.0


class File(Aggregate):
    """The aggregate whose events are projected; it is never constructed."""

    class Changed(Aggregate.Event):
        """Lines of a file were changed."""

        path: str
        added: int
        deleted: int
        filler: str


class Files(Application[UUID]):
    """The application that recorded the events."""


class FilesView(TrackingRecorder):
    """What the projection needs of its view."""

    def change(self, path: str, added: int, deleted: int, tracking: Tracking) -> None:
        """Counts a change, and tracks the event, atomically."""
        raise NotImplementedError


class PostgresFilesView(PostgresTrackingRecorder, FilesView):
    """That view in PostgreSQL."""

    def __init__(self, datastore: Any, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        self.table = self.tracking_table_name.replace("tracking", "files")
        self.committed = 0
        names = (Identifier(self.datastore.schema), Identifier(self.table))
        self.sql_create_statements.append(
            SQL(
                "CREATE TABLE IF NOT EXISTS {0}.{1} (path text PRIMARY KEY, "
                "changes bigint NOT NULL, added bigint NOT NULL, deleted bigint NOT NULL)"
            ).format(*names)
        )
        self.upsert = SQL(
            "INSERT INTO {0}.{1} AS f VALUES (%s, 1, %s, %s) ON CONFLICT (path) DO UPDATE SET "
            "changes = f.changes + 1, added = f.added + excluded.added, "
            "deleted = f.deleted + excluded.deleted"
        ).format(*names)

    def change(self, path: str, added: int, deleted: int, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as curs:
            curs.execute(self.upsert, (path, added, deleted), prepare=True)
            self._insert_tracking(curs, tracking)
        self.committed += 1

    def totals(self) -> tuple[int, int, int]:
        """Sums over the view: changes, added, deleted."""
        with self.datastore.get_connection() as connection:
            row: Any = connection.execute(
                SQL(
                    "SELECT coalesce(sum(changes), 0)::bigint AS c, coalesce(sum(added), 0)::bigint"
                    " AS a, coalesce(sum(deleted), 0)::bigint AS d FROM {0}.{1}"
                ).format(Identifier(self.datastore.schema), Identifier(self.table))
            ).fetchone()
        return row["c"], row["a"], row["d"]


def lines_of(number: int) -> tuple[int, int]:
    """Lines that the event (1-based) added and deleted; `benchmarks.projections.FILL` has the same
    in SQL.
    """
    return number % 97, number % 13


def _projection(name_: str) -> type[Projection[Any]]:
    class FilesProjection(Projection[FilesView]):
        name = name_  # of its tables
        topics = ()

        @singledispatchmethod
        def process_event(self, _event: Any, tracking: Tracking) -> None:
            self.view.insert_tracking(tracking)

        @process_event.register
        def _changed(self, event: File.Changed, tracking: Tracking) -> None:
            self.view.change(event.path, event.added, event.deleted, tracking)

    return FilesProjection


class Peer:
    """The application and, round after round, a fresh projection of it."""

    def __init__(self, host: str, user: str, database: str) -> None:
        self._env = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": database,
            "POSTGRES_HOST": host,
            "POSTGRES_PORT": "5432",
            "POSTGRES_USER": user,
            "POSTGRES_PASSWORD": "unused",
        }
        self._serial = itertools.count(1)
        self._events = 0

    def fill(self, events: int) -> dict[str, Any]:
        """Records so many events, those of the files in turn."""
        app = Files(self._env)
        numbers = range(self._events + 1, self._events + events + 1)
        for first in range(numbers.start, numbers.stop, AT_ONCE):
            batch = [self._stored(app, n) for n in numbers[first - numbers.start :][:AT_ONCE]]
            app.recorder.insert_events(batch)
        self._events += events
        head = app.recorder.max_notification_id()
        app.close()
        if head != self._events:
            raise RuntimeError(f"{self._events} events were recorded, the last has id {head}")
        return {"events": self._events}

    def _stored(self, app: Files, number: int) -> Any:
        path = f"src/file{(number - 1) % ENTITIES}"
        added, deleted = lines_of(number)

        def state(filler: str) -> Any:
            event = File.Changed(
                originator_id=uuid5(NAMESPACE_URL, path),
                originator_version=(number - 1) // ENTITIES + 1,
                timestamp=File.Changed.create_timestamp(),
                path=path, added=added, deleted=deleted, filler=filler,
            )  # fmt: skip
            return app.mapper.to_stored_event(event)

        return state("x" * max(0, STATE_BYTES - len(state("").state)))

    def run(self, seconds: float) -> dict[str, Any]:
        """One round: events committed in ``seconds`` after the ramp."""
        kind = _projection(f"files{next(self._serial)}")
        with ProjectionRunner(
            application_class=Files, projection_class=kind, view_class=PostgresFilesView,
            env=self._env,
        ) as runner:  # fmt: skip
            view: Any = runner.view
            deadline = time.perf_counter() + PATIENCE_SECONDS
            while not view.committed:
                runner.run_forever(timeout=0.005)  # raises what the thread raised
                if time.perf_counter() > deadline:
                    raise RuntimeError("it has projected nothing")
            runner.run_forever(timeout=ramp_of(seconds))
            before, began = view.committed, time.perf_counter()
            runner.run_forever(timeout=seconds)
            after, took = view.committed, time.perf_counter() - began
            runner.stop()
        projected = view.max_tracking_id("Files")
        if projected >= self._events:
            raise RuntimeError(f"it projected all {self._events} events before the round was over")
        lines = [lines_of(number) for number in range(1, projected + 1)]
        due = (projected, sum(a for a, _ in lines), sum(d for _, d in lines))
        if view.totals() != due:
            raise RuntimeError(f"the view has {view.totals()}, due were {due}")
        return {"value": (after - before) / took, "operations": projected}


def main(host: str, user: str, database: str) -> None:
    """Answers commands until standard input ends."""
    if psycopg.pq.__impl__ not in ("binary", "c"):
        raise SystemExit("psycopg runs without its C implementation; that would not be fair")
    peer = Peer(host, user, database)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(peer, command.pop("do"))(**command)
        except Exception as error:  # noqa: BLE001 - handed to the other process
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
