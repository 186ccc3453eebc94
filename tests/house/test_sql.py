"""Every statement prepares against the migrated schema; the hot ones use their index and read only
the chunks that hold what they want, under generic and under custom plans.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from journal.store import StoreJournal
from kernel import sql
from kernel.database import Connection, Database

ROOT = Path(__file__).parents[2]
STATEMENTS = sorted(
    (path.parts[-3], path.stem)
    for path in ROOT.glob("*/sql/*.sql")
    if path.parts[-3] != "migrations"
)

LOG = 3  # after `default` and `_system`
CHUNK, CHUNKS, ENTITIES = 4_000, 6, 4_000
HEAD = CHUNK * CHUNKS - 1_000

# A log as appends would have left it, in bulk: event n belongs to entity n mod 4,000. It passes
# `verify`, which the first test holds.
FILL = f"""
SELECT create_log_v1('small', {CHUNK});
SELECT create_chunk_v1({LOG}) FROM generate_series(1, {CHUNKS});
INSERT INTO entity_types (name) SELECT 'kind' || i FROM generate_series(1, 20) i;
INSERT INTO event_types (name, content_type)
  SELECT 'Happened' || i, 'text/plain' FROM generate_series(1, 200) i;
INSERT INTO entities (entity_key, last_seq, event_count, first_position, last_position, log_id,
    type_id, slice, entity_id)
  SELECT k, count(*), count(*), min(p), max(p), {LOG}, 1, k % 1024, 'e' || k
  FROM (SELECT p, (p - 1) % {ENTITIES} + 1 AS k FROM generate_series(1, {HEAD}) p) x GROUP BY k;
INSERT INTO events (position, entity_key, seq, recorded_at, prev_position, event_id, log_id,
    type_id, entity_type_id, slice, flags, entity_id, payload)
  SELECT p, (p - 1) % {ENTITIES} + 1, (p - 1) / {ENTITIES} + 1,
    timestamptz '2024-01-01Z' + p * interval '1 second',
    nullif(greatest(p - {ENTITIES}, 0), 0), gen_random_uuid(), {LOG}, 1 + p % 200, 1,
    (p - 1) % {ENTITIES} + 1, 0, 'e' || (p - 1) % {ENTITIES} + 1, 'payload'
  FROM generate_series(1, {HEAD}) p;
INSERT INTO batches (log_id, last_position, first_position, recorded_at, last_entity_key,
    bytes_total, node)
  SELECT {LOG}, p, p - 9, timestamptz '2024-01-01Z' + p * interval '1 second',
    least(p, {ENTITIES}), p * 7, 'test' FROM generate_series(10, {HEAD}, 10) p;
UPDATE batches SET recorded_at = timestamptz '2024-01-01Z'
  WHERE log_id = {LOG} AND last_position = 0;
INSERT INTO snapshots (entity_key, seq, recorded_at, log_id, type, content_type, payload)
  SELECT k, s, now(), {LOG}, 'state', 'text/plain', 'state'
  FROM generate_series(1, {ENTITIES}) k, generate_series(10, 40, 10) s;
INSERT INTO entity_marks (log_id, entity_key) VALUES ({LOG}, 7);
"""


@pytest.fixture
async def filled(database: Database) -> AsyncIterator[Connection]:
    """A connection to a database with the log `small` in it."""
    async with database.connection() as connection:
        await connection.execute(f"SET search_path = {database.schema}; {FILL}")
        await connection.execute("RESET search_path; ANALYZE")
        yield connection


@dataclass(frozen=True)
class Hot:
    """A statement with arguments, the index it has to use (a pattern), the chunks it may read."""

    name: str
    args: tuple[Any, ...]
    index: str = ""
    chunks: int = 0
    on: str = "events"
    package: str = "journal"

    def __str__(self) -> str:
        return f"{self.name}-{self.chunks}" if self.chunks else self.name


ALL = (None, None, None, None)
SECOND = (CHUNK + 1, CHUNK + 500)  # positions within the second chunk
EDGE = (CHUNK - 99, CHUNK + 100)  # across the first two
AT = datetime(2024, 1, 1, 1, tzinfo=UTC)
LEAF_POSITION, LEAF_ENTITY = r"^events_\d+_\d+_pkey", r"^events_\d+_\d+_entity_key_seq_key"

# $2 to $16 of the statements of candidates: no condition, then one each that reads events.
ANY: tuple[Any, ...] = (
    None, None, 0, 2**62, 0, 2**62, None, None, None, AT, None, None, None, None, True,
)  # fmt: skip
IN_RANGE = (CHUNK + 1, CHUNK + 500, *ANY[2:])
OF_TIME = (*ANY[:10], AT, AT, *ANY[12:])
OF_SIZE = (*ANY[:12], 1, 2**60, True)
DUE = (*ANY[:8], "due", *ANY[9:])
SAVE = (LOG, [7], [1], [7], [7], ["S"], ["t"], "{x}", [True], 0, False)
SCAN, LISTED = (1, "", "e1", "f", 50), ([1, 1], ["e7", "e8"])
OPERATION = "01890a5d-ac96-774b-bcce-b302099a8057"

HOT = [
    Hot("read_forwards", (LOG, *SECOND, 100, 10**6), LEAF_POSITION, 1),
    Hot("read_forwards", (LOG, *EDGE, 1000, 10**6), LEAF_POSITION, 2),
    Hot("read_backwards", (LOG, *SECOND, 100, 10**6), LEAF_POSITION, 1),
    Hot("select_forwards", (LOG, *SECOND, 100, 10**6, [1], [2], [0], [9]), LEAF_POSITION, 1),
    Hot("select_forwards", (LOG, *SECOND, 100, 10**6, *ALL), LEAF_POSITION, 1),
    Hot("select_backwards", (LOG, *SECOND, 100, 10**6, *ALL), LEAF_POSITION, 1),
    Hot("group_events", (LOG, [10, 200], 10, 200, 10**6), LEAF_POSITION, 1),
    Hot("group_events", (LOG, [10, CHUNK + 10], 10, CHUNK + 10, 10**6), LEAF_POSITION, 2),
    Hot("load_events", (LOG, 7, 0, 100, 7, CHUNK - 1, 1000, 10**6), LEAF_ENTITY, 1),
    Hot("load_events", (LOG, 7, 0, 100, 7, HEAD, 1000, 10**6), LEAF_ENTITY, CHUNKS),
    Hot(
        "load_entities",
        (LOG, [7, 8], [0, 0], [9, 9], [7, 8], [CHUNK - 1] * 2, 200, 10**6),
        LEAF_ENTITY,
        1,
    ),
    Hot("verify_window", (LOG, *SECOND, 1), LEAF_POSITION, 2),  # one event before it is read too
    Hot("verify_holes", (LOG, *SECOND), LEAF_POSITION, 1),
    Hot("head", (LOG,), "batches_pkey", on="batches"),
    Hot("logs", ("small",), "batches_pkey", on="batches"),
    Hot("chunks_ahead", (), "batches_pkey", on="batches"),
    Hot("verify_batches", (LOG, 100, 200), "batches_pkey", on="batches"),
    Hot("verify_entity_count", (LOG, 100), "batches_pkey", on="batches"),
    Hot("position_at", (LOG, AT), "batches_recorded_at", on="batches"),
    Hot("load_entity", (LOG, "kind1", "e7", 25), r"^snapshots_\d_pkey", on="snapshots"),
    Hot("load_entity", (LOG, "kind1", "e7", 25), r"^entities_\d_pkey", on="entities"),
    Hot("entity", (LOG, "kind1", "e7"), r"^snapshots_\d_pkey", on="snapshots"),
    Hot("entity", (LOG, "kind1", "e7"), r"^entities_\d_pkey", on="entities"),
    Hot("entities", (LOG, "kind1", "e1", "e2", False, 10), r"^entities_\d_pkey", on="entities"),
    *(
        Hot(name, (LOG, *conditions, *which), index, chunks, on, "operations")
        for name, which in (("candidates_scan", SCAN), ("candidates_listed", LISTED))
        for conditions, index, chunks, on in (
            (ANY, r"^entities_\d_pkey", 0, "entities"),
            (ANY, r"^entity_marks_pkey", 0, "entity_marks"),
            (ANY, r"^snapshots_\d_pkey", 0, "snapshots"),
            (IN_RANGE, LEAF_ENTITY, 1, "events"),
            (OF_TIME, LEAF_POSITION, 1, "events"),
            (OF_SIZE, LEAF_ENTITY, CHUNKS, "events"),
            (DUE, r"^snapshots_\d_pkey", 0, "snapshots"),
        )
    ),
    Hot(
        "compact_covering",
        (LOG, 1, [7, 8], [40, 40], None),
        r"^snapshots_\d_pkey",
        on="snapshots",
        package="operations",
    ),
    Hot(
        "compact_nothing",
        (LOG, [7], [1], [7], [CHUNK - 1], 5),
        LEAF_ENTITY,
        1,
        package="operations",
    ),
    Hot(
        "compact_move",
        (LOG, [1], ["e7"], [7], [11], [9], OPERATION),
        r"^entities_\d_pkey",
        on="entities",
        package="operations",
    ),
    Hot(
        "compact_move",
        (LOG, [1], ["e7"], [7], [11], [9], OPERATION),
        "entity_marks_pkey",
        on="entity_marks",
        package="operations",
    ),
    Hot(
        "compact_restore",
        (LOG, OPERATION, [7], [11], [1], [0], [10], f"{{{OPERATION}}}", [1]),
        "entity_marks_pkey",
        on="entity_marks",
        package="operations",
    ),
    Hot("candidates_range", (LOG, *SECOND, [1]), LEAF_POSITION, 1, package="operations"),
    Hot("candidates_type", (LOG, 1), r"^entities_\d_pkey", on="entities", package="operations"),
    Hot(
        "candidates_missing",
        (LOG, [1], ["e7"]),
        r"^entities_\d_pkey",
        on="entities",
        package="operations",
    ),
    Hot(
        "snapshot_facts",
        (LOG, [7], [1], [6], [1], [7], [CHUNK - 1], ["1/state"], True),
        LEAF_ENTITY,
        1,
        package="operations",
    ),
    Hot(
        "prune_facts",
        (LOG, [7], [1], [2], [99]),
        r"^snapshots_\d_pkey",
        on="snapshots",
        package="operations",
    ),
    Hot(
        "fold_before",
        (LOG, [7], [7], [CHUNK - 1], [6], AT + timedelta(days=9)),
        LEAF_ENTITY,
        1,
        package="snapshots",
    ),
    *(
        Hot(name, args, rf"^{on}_\d_pkey", on=on, package="snapshots")
        for name, on, args in (
            ("fold_entity", "entities", (LOG, "kind1", "e7")),
            ("fold_snapshot", "snapshots", (LOG, 7, 1, 25, ["state"], "kind1", 0)),
            ("fold_snapshots", "snapshots", (LOG, 7, 1, 25, 10)),
            ("snapshot_get", "snapshots", (LOG, "kind1", "e7", 25, None)),
            ("snapshot_get", "entities", (LOG, "kind1", "e7", 25, AT)),
            ("snapshots_list", "snapshots", (LOG, "kind1", "e7", 25, 10)),
            ("snapshot_remove", "snapshots", (LOG, 7, 10, 2)),
            ("snapshot_entity", "entities", (LOG, "kind1", "e7")),
            ("snapshot_save", "snapshots", SAVE),
            ("snapshots_due", "snapshots", (LOG, "kind1", "e1", 10, True)),
            ("snapshots_due", "entities", (LOG, "kind1", "e1", 10, False)),
        )
    ),
    Hot("snapshot_save", SAVE, LEAF_ENTITY, 1, package="snapshots"),
    Hot("snapshots_due", (LOG, "kind1", "e1", 10, True), LEAF_ENTITY, package="snapshots"),
    Hot(
        "snapshots_purge",
        ("7 days", AT, LOG, 7, 1, 10),
        "_removed_at_log_id_entity_key_seq_idx",
        on="snapshots",
        package="snapshots",
    ),
    Hot(
        "type_floors",
        ("kind1", '{"needs_full_replay": true}', 10),
        "entity_marks_floors",
        on="entity_marks",
        package="snapshots",
    ),
]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that were run."""
    if plan.get("Actual Loops", 1) == 0:
        return
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def quoted(value: object) -> str:
    """A literal of SQL; only for the arguments above."""
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return "ARRAY[" + ", ".join(map(quoted, value)) + "]"
    return f"'{value}'" if isinstance(value, str | datetime) else str(value)


async def explain(
    connection: Connection,
    name: str,
    args: tuple[Any, ...],
    text: str = "",
    package: str = "journal",
) -> dict[str, Any]:
    """The plan that a statement was run with."""
    await connection.execute(f"PREPARE hot AS {text or sql.load(package, name)}")
    call = f"hot ({', '.join(map(quoted, args))})" if args else "hot"
    said = await connection.fetchval(
        f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, FORMAT JSON) EXECUTE {call}"
    )
    await connection.execute("DEALLOCATE hot")
    plan: dict[str, Any] = json.loads(said)[0]["Plan"]
    return plan


def test_there_are_statements() -> None:
    assert len(STATEMENTS) > 20


async def test_the_log_of_these_tests_is_a_true_one(
    filled: Connection, store: StoreJournal
) -> None:
    report = [item async for item in store.verify("small")][-1].report
    assert report is not None
    assert report.ok, report.findings
    assert (report.events, report.entities) == (HEAD, ENTITIES)


async def test_every_statement_prepares_against_the_migrated_schema(database: Database) -> None:
    async with database.connection() as connection:
        for package, name in STATEMENTS:
            prepared = await connection.prepare(sql.load(package, name, database.schema))
            assert len(prepared.get_parameters()) < 40, name


def complaints(hot: Hot, plan: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the plan of a hot statement."""
    run = list(nodes(plan))
    ours = [node for node in run if node.get("Relation Name", "").startswith(hot.on)]
    for node in ours:
        if node["Node Type"] == "Seq Scan":
            yield f"{hot}: reads all of {node['Relation Name']}"
    used = {node["Index Name"] for node in run if "Index Name" in node}
    if not any(re.search(hot.index, name) for name in used):
        yield f"{hot}: uses {sorted(used)}, not {hot.index}"
    chunks = {node["Relation Name"] for node in ours}
    if hot.chunks and len(chunks) != hot.chunks:
        yield f"{hot}: reads {sorted(chunks)}"


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_hot_statements_use_their_index_and_read_no_other_chunk(
    filled: Connection, mode: str
) -> None:
    await filled.execute(f"SET plan_cache_mode = {mode}")
    found: list[str] = []
    for hot in HOT:
        plan = await explain(filled, hot.name, hot.args, package=hot.package)
        found += complaints(hot, plan)
    assert found == []


async def test_a_statement_without_bounds_would_be_found_out(filled: Connection) -> None:
    hot = Hot("unbounded", (LOG,), LEAF_POSITION, 1)
    text = "SELECT count(*) FROM everstate.events e WHERE e.log_id = $1"
    plan = await explain(filled, hot.name, hot.args, text)
    assert len(list(complaints(hot, plan))) > CHUNKS


async def test_every_hot_statement_on_events_is_looked_at(database: Database) -> None:
    on_events = {
        name
        for package, name in STATEMENTS
        if "everstate.events " in sql.load(package, name)  # the alias follows
    }
    # It reads all events of the log, in the background.
    assert on_events - {hot.name for hot in HOT} == {"verify_entities"}
