"""pyeventsourcing 9.5.6 (``eventsourcing``) on PostgreSQL, in a process of its own.

Chosen, so that it shows what it can do and not what we made of it:

- Its recorder (``insert_events`` of one `StoredEvent`), not an application that saves aggregates:
  no aggregate is constructed, no JSON is encoded. That is the same job as ours, bytes appended to a
  new entity, and it is the fastest way in; ``Application.save`` can only be slower.
- An application recorder, not an aggregate recorder: only it has a total order of all events, which
  is what a log is about, and what its documentation has applications use.
- psycopg 3 with its C implementation (checked), through a Unix socket, without a password.
- A pool with a connection for each writer, all open before the first insert, no pre-ping (default),
  no overflow: a writer never waits for a connection.
- ``default``: as it comes. Events are inserted in a pipelined transaction that locks the table
  against other writers, so that notification ids become visible in their order: the promise that
  our log makes. This is ``pyeventsourcing/N``.
- ``functions``: ``POSTGRES_ENABLE_DB_FUNCTIONS=y``, off by default, on in the examples that its
  documentation shows speeds with. One round trip to a database function, two to three times as
  fast; but the function of 9.5.6 takes no lock, so with several writers a reader may see an id
  before a lower one is there (tried: a second session committed its id while the first had not).
  It is faster and promises less: ``pyeventsourcing_functions/N``, measured beside the other.
- Writers are threads, as in its own applications. Ids are version 4 UUIDs, the default of its
  `Aggregate`.
- Durability, server and settings are those that Everstate gets; its tables are in a database of
  their own.

Reads commands (JSON lines) from standard input and answers on standard output.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from array import array
from typing import Any
from uuid import uuid4

import eventsourcing.postgres  # noqa: F401 - here, so that what it lacks is named
import psycopg
from eventsourcing.persistence import InfrastructureFactory, StoredEvent
from eventsourcing.utils import Environment

from benchmarks.load import percentile, ramp_of

PAYLOAD = b"x" * 256
TOPIC = "benchmarks.peers:Account.Opened"


class Peer:
    """Recorders by configuration and number of writers, made when first wanted."""

    def __init__(self, host: str, user: str, database: str) -> None:
        self._where = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": database,
            "POSTGRES_HOST": host,
            "POSTGRES_PORT": "5432",
            "POSTGRES_USER": user,
            "POSTGRES_PASSWORD": "unused",
        }
        self._recorders: dict[tuple[str, int], Any] = {}
        self._factories: list[Any] = []

    def recorder(self, kind: str, writers: int) -> Any:
        """An application recorder whose pool has a connection for each writer."""
        found = self._recorders.get((kind, writers))
        if found is None:
            env = Environment(
                kind,  # also the table's prefix
                self._where
                | {
                    "POSTGRES_POOL_SIZE": str(writers),
                    "POSTGRES_MAX_OVERFLOW": "0",
                    "POSTGRES_ENABLE_DB_FUNCTIONS": "y" if kind == "functions" else "n",
                },
            )
            factory: Any = InfrastructureFactory.construct(env)
            found = factory.application_recorder()
            factory.datastore.pool.wait()
            self._factories.append(factory)
            self._recorders[kind, writers] = found
        return found

    def run(self, kind: str, writers: int, seconds: float) -> dict[str, float]:
        """One round; see `benchmarks.load.closed_loop` for what is counted."""
        recorder = self.recorder(kind, writers)
        before = recorder.max_notification_id() or 0
        latencies = [array("d") for _ in range(writers)]
        operations = [0] * writers
        failures: list[BaseException] = []
        count_from = time.perf_counter() + ramp_of(seconds)
        end = count_from + seconds

        def write(number: int) -> None:
            now = time.perf_counter
            mine = latencies[number]
            insert = recorder.insert_events
            started = now()
            try:
                while started < end:
                    insert([StoredEvent(uuid4(), 1, TOPIC, PAYLOAD)])
                    finished = now()
                    operations[number] += 1
                    if count_from <= finished <= end:
                        mine.append(finished - started)
                    started = finished
            except Exception as error:  # noqa: BLE001 - handed to the other process
                failures.append(error)

        threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        written = recorder.max_notification_id() - before
        if written != sum(operations):
            raise RuntimeError(f"{sum(operations)} inserts, but {written} events are there")
        every = [latency for mine in latencies for latency in mine]
        return {
            "value": len(every) / seconds,
            "p50_ms": percentile(every, 0.5),
            "p99_ms": percentile(every, 0.99),
            "operations": sum(operations),
        }

    def close(self) -> None:
        """Closes the pools."""
        for factory in self._factories:
            factory.close()


def main(host: str, user: str, database: str) -> None:
    """Answers commands until standard input ends."""
    if psycopg.pq.__impl__ not in ("binary", "c"):
        raise SystemExit("psycopg runs without its C implementation; that would not be fair")
    peer = Peer(host, user, database)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer: dict[str, Any] = peer.run(**command)
        except Exception as error:  # noqa: BLE001 - handed to the other process
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    peer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
