"""What workers do about builds: orders that cannot be carried out, and what they show of it."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest

from journal.store import StoreJournal
from kernel import telemetry
from kernel.errors import Unavailable
from projections import control, sqlfile
from projections.rebuild import Rebuilds
from projections.upkeep import Upkeep
from tests.by_hand import Hand
from tests.integration.test_replay import DELETION, SUMS


@pytest.fixture
async def hand(store: StoreJournal) -> Hand:
    """Ten events, of which six are applied."""
    definition = sqlfile.parse(SUMS.format(segments=1, deletion=DELETION), "sums.sql")
    made = await Hand.start(store, definition)
    for n in range(10):
        await made.append(f"thing-{n}", by=n)
    await made.catch_up(to=6)
    return made


def shown() -> dict[str, float]:
    return {
        sample.labels["projection"]: sample.value
        for metric in telemetry.rebuild_progress.collect()
        for sample in metric.samples
    }


async def test_an_order_that_cannot_be_carried_out_fails_with_its_reason(hand: Hand) -> None:
    # As if a type that the tables need had gone since the version was registered.
    text = SUMS.format(segments=1, deletion=DELETION).replace("bigint", "no_such_type")
    hand.definitions = {("sums", 1): sqlfile.parse(text, "sums.sql")}
    await control.rebuild(hand.database, "sums")
    await hand.upkeep.step()
    row = await control.get_build(hand.database, "sums", 1, 2)
    assert row.state == "failed"
    assert "no_such_type" in row.error["message"]
    assert "sums.sql:" in row.error["message"]
    schemas = await hand.database.fetch("SELECT FROM pg_namespace WHERE nspname = 'rm_sums_v1_r2'")
    assert schemas == [], "nothing stays"
    # It is given up, and another may be ordered.
    assert (await control.discard(hand.database, "sums")).state == "retired"
    await hand.upkeep.step()
    assert [r["what"] for r in await Rebuilds(hand.database).due(timedelta(0))] == []
    assert (await control.rebuild(hand.database, "sums")).build == 3


async def test_the_progress_of_a_rebuild_is_a_metric_until_it_is_live(hand: Hand) -> None:
    telemetry.rebuild_progress.clear()  # of other tests of this process
    upkeep = hand.upkeep
    await control.rebuild(hand.database, "sums", auto_switch=True)
    await upkeep.step()
    assert shown() == {"sums": 0.0}
    for segment in await hand.segments():
        if segment.build == 2:
            await hand._advance(segment, 5)
    await upkeep.step()
    assert shown() == {"sums": 0.5}
    await hand.catch_up()
    await upkeep.step()
    assert (await control.get_projection(hand.database, "sums")).build == 2
    await upkeep.step()
    assert shown() == {}


async def test_a_build_that_halted_is_not_ready_and_its_switch_says_why(hand: Hand) -> None:
    await control.rebuild(hand.database, "sums")
    await hand.upkeep.step()
    await hand.catch_up()
    await hand.upkeep.step()
    assert (await control.get_build(hand.database, "sums", 1, 2)).state == "ready"
    async with hand.database.connection() as connection:
        await connection.execute(
            "UPDATE everstate.projection_checkpoints SET state = 'halted', position = 3"
            " WHERE build = 2"
        )
    with pytest.raises(
        Exception, match="7 positions behind the live one; 1 of its segments halted"
    ):
        await Rebuilds(hand.database).switch("sums", within=timedelta(seconds=0.5))


async def test_a_switch_that_cannot_be_done_is_tried_ever_later(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    tries: list[float] = []

    async def switch(*_: object) -> None:
        tries.append(now)
        raise Unavailable("long queries hold the views")

    async def due(*_: object) -> list[dict[str, object]]:
        return [{"name": "sums", "version": 1, "build": 2, "what": "switch"}]

    monkeypatch.setattr(Rebuilds, "switch", switch)
    monkeypatch.setattr(Rebuilds, "due", due)
    upkeep = Upkeep(hand.database, lambda *_: None, clock=lambda: now)
    for _ in range(200):
        await upkeep.step()
        now += 1.0
    pauses = [b - a for a, b in pairwise(tries)]
    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert set(pauses[5:]) == {30.0}
