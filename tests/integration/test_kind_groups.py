"""seek, replay-parked, discard-parked as operations, with members of the group connected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from admin_ui import app as admin_app
from admin_ui.services import AdminSettings
from journal.groups.model import ParkedSelection
from journal.model import ReadQuery
from kernel import clock
from kernel.errors import Conflict, InvalidArgument, NotFound, OutOfRange
from kernel.principals import PAYLOAD, Role
from kernel.token_store import Tokens
from operations import control, store
from operations.kinds import groups as group_kinds
from operations.kinds import kind_named
from operations.kinds.base import TaskKind
from operations.model import ItemState, Moment, OperationRow, Policy, Selection, State
from sidecar_api.client import Client
from sidecar_api.client.groups import Member
from tests.asgi import Asgi
from tests.engine_support import ANN, Bench, bench
from tests.group_support import QUICK, GroupNode, append, next_of, running_node, settled, take
from tests.operating import context_of, table
from tests.support import eventually_async, one

PARKED = ("parked_events", "position")


@dataclass
class Place:
    """A node that serves groups, and a desk on the same database."""

    node: GroupNode
    desk: Bench

    @property
    def client(self) -> Client:
        return self.node.client

    async def apply(
        self, kind: str, selection: Selection | None = None, rate: float | None = None,
        **parameters: Any,
    ) -> OperationRow:  # fmt: skip
        """Planned and applied; it is not run yet."""
        plan = await self.desk.plan(
            kind, target="mail", selection=selection or Selection(), parameters=parameters,
            rate=rate,
        )  # fmt: skip
        return await self.desk.apply(plan)

    async def run(self, row: OperationRow) -> OperationRow:
        async with self.desk.running():
            return await self.desk.ended(row)

    async def done(self, kind: str, *args: Any, **more: Any) -> OperationRow:
        return await self.run(await self.apply(kind, *args, **more))

    async def undone(self, row: OperationRow) -> OperationRow:
        await control.undo(self.desk.database, row.id, reason="back", principal=ANN)
        return await self.run(row)

    async def killed(self, row: OperationRow, state: State = State.RUNNING) -> None:
        """A worker takes the operation, makes a step, and is killed before it keeps that."""
        await self.desk.database.fetch(
            "UPDATE everstate.operations SET state = $2, started_at = coalesce(started_at, now())"
            " WHERE operation_id = $1",
            store.uuid_of(row.id), state,
        )  # fmt: skip
        row = await self.desk.get(row)
        kind: Any = kind_named(row.kind)
        context = await context_of(self.node.store, kind, row.parameters)
        await (kind.undo if state is State.UNDOING else kind.advance)(row, context)

    async def outcomes(self, row: OperationRow) -> dict[int, tuple[str, str]]:
        """Position → state and reason of the items."""
        items = await control.list_items(self.desk.database, row.id, limit=1000)
        return {item.position: (item.state.name, item.reason) for item in items}

    async def list(self) -> list[tuple[int, str]]:
        return [(e.position, e.state) for e in (await self.client.groups.parked("mail")).events]

    async def counted(self) -> int:
        return sum(p.parked for p in (await self.client.groups.get("mail")).partitions)

    async def noticed(self) -> bool:
        """Whether the member connected here knows of the newest change of the list."""
        group = await self.node.groups.get("mail")
        rows = await self.node.groups.store.partitions(group.group_id)
        (session,) = self.node.groups._runners[group.group_id].sessions.values()
        return session.versions == {row.partition: row.parked_version for row in rows}

    async def image(self) -> list[Any]:
        return await self.desk.database.fetch(
            "SELECT partition, watermark, pending, attempts, due_us FROM everstate.group_partitions"
            " ORDER BY partition"
        )


@pytest.fixture
async def place(database_url: str) -> AsyncIterator[Place]:
    """Twelve events of six entities; the group `mail` has two partitions."""
    async with running_node(database_url) as node:
        await append(node.client, 12, entities=6)
        await node.client.groups.create("mail", QUICK)
        async with bench(node.store.database, node.store) as desk:
            yield Place(node, desk)


async def park(member: Member, positions: Sequence[int], reason: str = "no") -> None:
    """Acks what comes but for these positions, which are parked."""
    wanted = set(positions)
    while wanted:
        delivery = await next_of(member)
        if delivery.event.position in wanted:
            wanted.remove(delivery.event.position)
            assert await delivery.park(f"{reason} {delivery.event.position}")
        else:
            assert await delivery.ack()


async def park_all(place: Place, *positions: int, reason: str = "no") -> None:
    async with place.client.groups.join("mail") as member:
        await park(member, positions, reason)
        while True:
            try:
                assert await (await next_of(member, 0.3)).ack()
            except TimeoutError:
                break
    await settled(place.client, "mail", 12)


# -- seek ----------------------------------------------------------------------------------------


async def test_a_seek_moves_the_group_and_its_undo_puts_it_back_where_it_was(place: Place) -> None:
    client = place.client
    async with client.groups.join("mail") as member:
        for delivery in await take(member, 6):
            if delivery.event.position % 2:
                assert await delivery.ack()
            else:
                await delivery.nack("later", retry_after=timedelta(hours=1))
        await take(member, 3)
    before = await place.image()
    assert any(row["pending"] for row in before), "some of it is not settled"
    row = await place.apply("seek", position=11)
    assert row.plan["sentence"].startswith(
        "Group 'mail' goes on after position 10 of log 'default'; it is at "
    )
    done = await place.run(row)
    assert (done.state, done.done) == (State.DONE, 1)
    assert (await client.groups.get("mail")).position == 10
    back = await place.undone(row)
    assert (back.state, back.undone) == (State.UNDONE, 1)
    assert await place.image() == before
    async with client.groups.join("mail") as member:
        assert {d.event.position for d in await take(member, 3)} == {7, 9, 11}


async def test_members_go_on_at_the_new_place(place: Place) -> None:
    async with place.client.groups.join("mail") as member:
        for _ in range(12):
            assert await (await next_of(member)).ack()
        await settled(place.client, "mail", 12)
        row = await place.apply("seek", to="beginning")
        assert row.plan["consumers"] == [{"name": "mail", "members": 1, "again": 12, "skipped": 0}]
        assert len(row.plan["warnings"]) == 2
        await place.run(row)
        positions = []
        for _ in range(12):
            delivery = await next_of(member)
            positions.append(delivery.event.position)
            assert await delivery.ack()
    assert sorted(positions) == list(range(1, 13))


async def test_a_seek_is_done_once_though_the_worker_is_killed_after_it(place: Place) -> None:
    row = await place.apply("seek", position=7)
    before = await place.image()
    await place.killed(row)
    async with place.client.groups.join("mail") as member:
        for _ in range(6):
            assert await (await next_of(member)).ack()
        await settled(place.client, "mail", 12)
    assert (await place.run(row)).state is State.DONE
    assert (await place.client.groups.get("mail")).position == 12, "it was not moved again"
    await control.undo(place.desk.database, row.id, reason="back", principal=ANN)
    await place.killed(row, State.UNDOING)
    moved = await place.image()
    assert moved == before
    assert (await place.run(row)).undone == 1


async def test_undo_leaves_a_group_that_was_moved_again(place: Place) -> None:
    first = await place.done("seek", position=5)
    await place.client.groups.seek("mail", 9)
    back = await place.undone(first)
    assert (back.state, back.undone) == (State.UNDONE, 0)
    items = await control.list_items(place.desk.database, first.id)
    assert [(i.state, i.reason) for i in items] == [(ItemState.NOT_UNDONE, "changed")]
    assert (await place.client.groups.get("mail")).position == 8


async def test_two_seeks_are_undone_one_after_the_other(place: Place) -> None:
    before = await place.image()
    first = await place.done("seek", position=5)
    second = await place.done("seek", to="now")
    assert (await place.client.groups.get("mail")).position == 12
    assert (await place.undone(first)).undone == 0, "the second one stands"
    assert (await place.undone(second)).undone == 1
    assert (await place.client.groups.get("mail")).position == 4
    other = await place.done("seek", position=8)
    await place.undone(other)
    assert await place.image() != before


async def test_a_seek_to_a_time(place: Place) -> None:
    events = [e async for b in place.node.store.read("default", ReadQuery()) for e in b.events]
    await place.done("seek", time=clock.format_us(events[0].recorded_at_us))
    assert (await place.client.groups.get("mail")).position == 0
    await place.done("seek", time="2099-01-01T00:00:00Z")
    assert (await place.client.groups.get("mail")).position == 12


async def test_where_a_group_cannot_go_is_refused_at_the_plan(place: Place) -> None:
    with pytest.raises(OutOfRange):
        await place.apply("seek", position=14)
    with pytest.raises(NotFound):
        await place.desk.plan(
            "seek", target="nobody", parameters={"to": "now"}, selection=Selection()
        )
    with pytest.raises(InvalidArgument) as refused:
        await place.apply("seek", Selection(types=("thing",)), to="now")
    assert refused.value.field == "selection"


async def test_another_group_of_the_name_is_not_moved(place: Place) -> None:
    row = await place.apply("seek", to="now")
    await place.client.groups.delete("mail")
    await place.client.groups.create("mail", QUICK)
    assert (await place.run(row)).state is State.REVIEW
    assert (await place.client.groups.get("mail")).position == 0
    kind = kind_named("seek")
    context = await context_of(place.node.store, kind, row.parameters)
    with pytest.raises(Conflict, match="deleted, and made again"):
        await kind.advance(row, context)  # type: ignore[union-attr]


# -- parked events -------------------------------------------------------------------------------


async def test_parked_events_are_delivered_again_with_those_that_wait_behind_them(
    place: Place,
) -> None:
    await park_all(place, 1, 2)
    assert await place.list() == [(1, "parked"), (2, "parked"), (7, "held"), (8, "held")]
    row = await place.apply("replay-parked")
    assert row.plan["sentence"] == (
        "Deliver 2 parked events of 2 entities to group 'mail' again; events that wait behind"
        " them follow."
    )
    assert row.plan["excluded"] == {"waiting": 2}
    assert row.plan["undoable"] is False
    assert [sample["position"] for sample in row.plan["samples"]] == [1, 2], "each once"
    assert not any("reason" in sample for sample in row.plan["samples"])
    async with place.client.groups.join("mail") as member:
        done = await place.run(row)
        assert (done.state, done.done, done.skipped) == (State.DONE, 2, 0)
        got = []
        for _ in range(4):
            delivery = await next_of(member)
            assert delivery.replayed
            got.append(delivery.event.position)
            assert await delivery.ack()
    assert sorted(got) == [1, 2, 7, 8]
    assert got.index(1) < got.index(7)
    assert await place.counted() == 0


async def test_a_selection_chooses_of_the_list(place: Place) -> None:
    await park_all(place, 1, 2, 3, 4)

    async def chosen(selection: Selection | None = None, **parameters: Any) -> list[int]:
        row = await place.apply("discard-parked", selection, **parameters)
        return sorted(await place.outcomes(row))

    assert await chosen() == [1, 2, 3, 4, 7, 8, 9, 10]
    assert await chosen(Selection(from_=Moment(2), to=Moment(7))) == [2, 3, 4, 7]
    assert await chosen(Selection(entities=(("thing", "e0"), ("thing", "e3")))) == [1, 4, 7, 10]
    assert await chosen(Selection(types=("other",))) == []
    assert await chosen(Selection(types=("thing", "other")), positions=[3, 9, 11]) == [3, 9]
    assert await chosen(reason_contains="no 2") == [2]
    assert await chosen(event_type="Happened", reason_contains="no") == [1, 2, 3, 4]
    assert await chosen(event_type="Other") == []


async def test_the_words_of_members_are_shown_to_nobody_without_the_grant(place: Place) -> None:
    words = "card 4111 1111 refused"
    await park_all(place, 1, 2, reason=words)
    database = place.desk.database
    row = await place.apply("discard-parked", reason_contains="card 4111")
    assert row.items == 2
    app = admin_app.application(admin_app.services(database, AdminSettings()))
    for grants, seen in ((frozenset(), None), (frozenset({PAYLOAD}), "card 4111")):
        token, _ = await Tokens(database).create(
            f"eve{len(grants)}", Role.VIEWER, grants=grants, by="test"
        )
        viewer = Asgi(app, token=token)
        one, listed = (
            await viewer.get(f"/api/v1/operations/{row.id}"),
            await viewer.get("/api/v1/operations"),
        )
        assert one.ok()["parameters"] == {"reason_contains": seen}
        assert words.encode() not in one.body + listed.body
        assert (b"4111" in one.body) is (b"4111" in listed.body) is (seen is not None)


async def test_discarded_events_come_back_byte_by_byte(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_kinds, "STEP_ITEMS", 3)
    await park_all(place, 1, 2, 3, 4, reason='é "quoted" \'\n')
    database = place.desk.database
    rows, counts = await table(database, *PARKED), await place.counted()
    row = await place.apply("discard-parked")
    await place.killed(row)
    assert len(await place.list()) == 5
    done = await place.run(row)
    assert (done.state, done.done, done.skipped, done.events) == (State.DONE, 8, 0, 8)
    assert (await place.list(), await place.counted()) == ([], 0)
    await control.undo(database, row.id, reason="back", principal=ANN)
    await place.killed(row, State.UNDOING)
    assert len(await place.list()) == 3
    back = await place.run(row)
    assert (back.state, back.undone) == (State.UNDONE, 8)
    assert await table(database, *PARKED) == rows
    assert await place.counted() == counts
    assert set((await place.outcomes(row)).values()) == {("UNDONE", "")}


async def test_a_connected_member_notices_what_is_discarded_and_what_comes_back(
    place: Place,
) -> None:
    client = place.client
    async with client.groups.join("mail") as member:
        for _ in range(11):
            delivery = await next_of(member)
            if delivery.event.position == 1:
                assert await delivery.park("no 1")
            else:
                assert await delivery.ack()
        await settled(client, "mail", 12)
        assert await place.list() == [(1, "parked"), (7, "held")]
        only_first = Selection(from_=Moment(1), to=Moment(1))
        discarded = await place.done("discard-parked", only_first)
        delivery = await next_of(member)  # what waited behind it
        assert (delivery.event.position, delivery.replayed) == (7, True)
        assert await delivery.ack()
        assert await place.counted() == 0
        await place.undone(discarded)
        assert await place.list() == [(1, "parked")]
        await eventually_async(place.noticed, "the member has noticed")
        await client.append("", one("e0"))
        await settled(client, "mail", 13)

        async def held() -> bool:
            return await place.list() == [(1, "parked"), (13, "held")]

        await eventually_async(held, "the entity waits again")
        assert await place.counted() == 2


async def test_what_has_left_the_list_since_the_plan_is_skipped(place: Place) -> None:
    await park_all(place, *range(1, 7))
    row = await place.apply(
        "discard-parked", Selection(from_=Moment(1), to=Moment(6)), event_type="Happened"
    )
    await control.set_policy(
        place.desk.database, "discard-parked", _lenient(), version=None, principal=ANN
    )
    await place.client.groups.discard("mail", _only(3))
    done = await place.run(row)
    assert (done.state, done.done, done.skipped) == (State.DONE, 5, 1)
    assert (await place.outcomes(row))[3] == ("SKIPPED", "gone")


def _lenient() -> Any:
    return Policy(max_drift=0.5)


def _only(position: int) -> Any:
    return ParkedSelection(positions=(position,))


async def test_a_list_that_has_changed_too_much_goes_to_review(place: Place) -> None:
    await park_all(place, 1, 2)
    row = await place.apply("replay-parked")
    await place.client.groups.discard("mail", _only(1))
    assert (await place.run(row)).state is State.REVIEW
    assert (2, "parked") in await place.list()


async def test_undo_leaves_an_event_that_is_on_the_list_again(place: Place) -> None:
    await park_all(place, 1, 2)
    row = await place.done("discard-parked", positions=[1, 2])
    await place.client.groups.seek("mail", 0)
    await park_all(place, 1, reason="again")
    back = await place.undone(row)
    assert (back.state, back.undone) == (State.UNDONE, 1)
    assert await place.outcomes(row) == {1: ("NOT_UNDONE", "changed"), 2: ("UNDONE", "")}
    events = (await place.client.groups.parked("mail")).events
    assert [(e.position, e.reason) for e in events if e.state == "parked"] == [
        (1, "again 1"),
        (2, "no 2"),
    ]


async def test_a_replay_keeps_to_the_operations_rate_over_steps(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_kinds, "STEP_ITEMS", 2)
    await park_all(place, *range(1, 7))
    row = await place.apply("replay-parked", rate=5)
    done = await place.run(row)
    assert done.started_at is not None
    found = await place.desk.database.fetch(
        "SELECT extract(epoch FROM due_at - $1)::float8 FROM everstate.parked_events"
        " WHERE state = 'replaying' AND position <= 6 ORDER BY position",
        done.started_at,
    )
    assert [round(r[0], 6) for r in found] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


async def test_a_cancelled_discard_ends_after_its_step_and_can_be_undone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_kinds, "STEP_ITEMS", 3)
    await park_all(place, 1, 2, 3, 4)
    rows = await table(place.desk.database, *PARKED)
    row = await place.apply("discard-parked")
    async with place.desk.running():
        while not (await place.desk.get(row)).done:
            await asyncio.sleep(0.005)
        await control.cancel(place.desk.database, row.id, principal=ANN)
        ended = await place.desk.ended(row)
    assert (ended.state, ended.done) == (State.CANCELLED, 3)
    assert len(await place.list()) == 5
    assert (await place.undone(row)).undone == 3
    assert len(await place.list()) == len(rows)


async def test_nothing_is_done_for_an_operation_that_does_not_run_any_more(place: Place) -> None:
    """A worker that lost its lease comes late: the operation is cancelled, or undone."""
    await park_all(place, 1, 2)
    before = await table(place.desk.database, *PARKED)
    for kind in ("discard-parked", "replay-parked", "seek"):
        given = {"to": "beginning"} if kind == "seek" else {}
        row = await place.apply(kind, **given)
        of = kind_named(kind)
        assert not hasattr(of, "judge")
        context = await context_of(place.node.store, of, given)
        said = await of.advance(row, context)  # type: ignore[union-attr]  # it is queued only
        assert (said.finished, said.done) == (False, 0)
    assert await table(place.desk.database, *PARKED) == before
    assert (await place.client.groups.get("mail")).position == 12


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        ("seek", {}, "parameters.position"),
        ("seek", {"position": 3, "to": "now"}, "parameters.position"),
        ("seek", {"position": 0}, "parameters.position"),
        ("seek", {"position": True}, "parameters.position"),
        ("seek", {"position": None}, "parameters.position"),
        ("seek", {"to": "end"}, "parameters.to"),
        ("seek", {"time": 12}, "parameters.time"),
        ("seek", {"time": "2024-01-01T00:00:00"}, "parameters.time"),
        ("seek", {"where": "now"}, "parameters.where"),
        ("replay-parked", {"positions": 3}, "parameters.positions"),
        ("replay-parked", {"positions": [0]}, "parameters.positions[0]"),
        ("replay-parked", {"positions": list(range(1, 1002))}, "parameters.positions"),
        ("discard-parked", {"event_type": "x" * 256}, "parameters.event_type"),
        ("discard-parked", {"reason_contains": "a\0b"}, "parameters.reason_contains"),
        ("discard-parked", {"all": True}, "parameters.all"),
    ],
)
def test_bad_parameters_are_refused_with_their_name(
    kind: str, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        kind_named(kind).parameters(given)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("selection", "field"),
    [(Selection(where="type = thing"), "selection.where"), (Selection("_system"), "log")],
)
async def test_what_cannot_choose_parked_events_is_refused(
    place: Place, selection: Selection, field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await place.apply("replay-parked", selection)
    assert refused.value.field == field


def test_they_are_tasks() -> None:
    for kind in ("seek", "replay-parked", "discard-parked", "replay", "rebuild"):
        of: Any = kind_named(kind)
        checked: TaskKind = of
        assert not hasattr(checked, "judge")
