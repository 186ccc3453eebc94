"""Logs as appends would have left them, made in bulk; they pass `everstate log verify`, which runs.

Event n of a log is of entity (n - 1) mod entities + 1, a hundred events a commit, a second each.
"""

from __future__ import annotations

from benchmarks.load import BenchmarkError
from benchmarks.workspace import Workspace
from kernel.ids import slice_of

PAYLOAD_BYTES = 256
_AT_ONCE = 100_000

_TYPES = (
    "INSERT INTO everstate.entity_types (name) VALUES ($1) ON CONFLICT DO NOTHING",
    """
    INSERT INTO everstate.event_types (name, content_type) VALUES ($1, 'application/json')
    ON CONFLICT DO NOTHING
    """,
)

# $1 log, $2 entity type, $3 entity ids in the order of their first events, $4 their slices, $5 how
# many events.
_ENTITIES = """
INSERT INTO everstate.entities (entity_key, last_seq, event_count, first_position, last_position,
  log_id, type_id, slice, entity_id)
SELECT e.k, n.count, n.count, e.k, e.k + (n.count - 1) * cardinality($3::text[]), $1,
  (SELECT type_id FROM everstate.entity_types WHERE name = $2), e.slice, e.id
FROM unnest($3::text[], $4::int[]) WITH ORDINALITY e (id, slice, k),
  LATERAL (SELECT ($5::bigint - e.k) / cardinality($3::text[]) + 1 AS count) n
"""

# As above; $5 event type, $6 and $7 first and last position. {fields}: of the payload's object.
_EVENTS = """
INSERT INTO everstate.events (position, entity_key, seq, recorded_at, prev_position, event_id,
  log_id, type_id, entity_type_id, slice, flags, entity_id, payload)
SELECT p, e.k, (p - 1) / n.n + 1,
  timestamptz '2026-01-01Z' + (p - 1) / 100 * interval '1 second',
  CASE WHEN p > n.n THEN p - n.n END, gen_random_uuid(), $1,
  (SELECT type_id FROM everstate.event_types WHERE name = $5
     AND content_type = 'application/json'),
  (SELECT type_id FROM everstate.entity_types WHERE name = $2), e.slice, 0, e.id,
  convert_to(rpad(format('{{{fields}"filler":"', {values}), {bytes} - 2, 'x') || '"}}', 'UTF8')
FROM (SELECT cardinality($3::text[])::bigint AS n) n, generate_series($6::bigint, $7::bigint) p
JOIN unnest($3::text[], $4::int[]) WITH ORDINALITY e (id, slice, k)
  ON e.k = (p - 1) % cardinality($3::text[]) + 1
"""

# $1 log, $2 entities, $3 events.
_BATCHES = f"""
INSERT INTO everstate.batches (log_id, last_position, first_position, recorded_at,
  last_entity_key, bytes_total, node)
SELECT $1, p, p - 99, timestamptz '2026-01-01Z' + (p - 100) / 100 * interval '1 second',
  least(p, $2::bigint), p * {PAYLOAD_BYTES}, 'benchmark'
FROM generate_series(100, $3::bigint, 100) p
"""
_FIRST = """
UPDATE everstate.batches SET recorded_at = '2026-01-01Z' WHERE log_id = $1 AND last_position = 0
"""


async def fill(
    space: Workspace, log: str, entity_type: str, names: list[str], events: int, event_type: str,
    values: dict[str, str],
) -> int:  # fmt: skip
    """Makes a log of ``events`` events of the entities ``names``; its number.

    ``values``: fields of each payload, as SQL over the position ``p``.

    Raises:
        BenchmarkError: what was made is not a true log.

    """
    await space.stack.client.create_log(log)
    connection = await space.stack.connection()
    log_id: int = await connection.fetchval(
        "SELECT log_id FROM everstate.logs WHERE name = $1", log
    )
    slices = [slice_of(entity_type, name) for name in names]
    statement = _EVENTS.format(
        fields="".join(f'"{name}":%s,' for name in values), values=", ".join(values.values()),
        bytes=PAYLOAD_BYTES,
    )  # fmt: skip
    async with connection.transaction():
        await connection.execute(_TYPES[0], entity_type)
        await connection.execute(_TYPES[1], event_type)
        await connection.execute(_ENTITIES, log_id, entity_type, names, slices, events)
        for low in range(1, events + 1, _AT_ONCE):
            high = min(events, low + _AT_ONCE - 1)
            await connection.execute(
                statement, log_id, entity_type, names, slices, event_type, low, high
            )
        await connection.execute(_BATCHES, log_id, len(names), events)
        await connection.execute(_FIRST, log_id)
    # As autovacuum would at a moment of its own choice, in the middle of a round.
    await connection.execute("VACUUM (ANALYZE) everstate.events")
    await connection.execute("VACUUM (ANALYZE) everstate.entities")
    report = None
    async for progress in space.stack.client.verify(log):
        report = progress.report or report
    if report is None or not report.ok or report.events != events:
        raise BenchmarkError(f"the log that was filled is not a true one: {report}")
    return log_id
