"""Snapshots: saved, found, listed, deleted; settings of entity types; what is due."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from journal.memory import TypeRules
from journal.model import Append, NewSnapshot
from kernel import clock
from kernel.errors import (
    AlreadyExists,
    Conflict,
    EntityNotFound,
    InvalidArgument,
    LogNotFound,
    NotFound,
    PermissionDenied,
    TooLarge,
)
from kernel.ids import new_id
from snapshots.model import SnapshotInfo, TypeSettings
from tests.conformance.subject import Subject, entity, event, events

FOUR, OTHER = NewSnapshot("Cart", b"4"), NewSnapshot("Cart", b"other")


async def save(
    subject: Subject, sequence: int, snapshot: NewSnapshot = FOUR, name: str = "a", **of: Any
) -> SnapshotInfo:
    found: SnapshotInfo = await subject.snapshots.save(
        subject.log, of.pop("kind", "cart"), name, sequence, snapshot, **of
    )
    return found


async def stored(subject: Subject, name: str = "a") -> list[int]:
    return [s.sequence for s in await subject.snapshots.list(subject.log, "cart", name)]


async def put_type(subject: Subject, **of: Any) -> str:
    """Sets a type that no other test has; its name."""
    kind = f"kind-{subject.log}"
    await subject.kinds.put(kind, TypeSettings(**of), version=None, principal="ann")
    return kind


# Saving


async def test_a_saved_snapshot_is_what_the_next_load_begins_with(subject: Subject) -> None:
    await subject.put("b", 2)
    said = 1_600_000_000_000_001
    await subject.append(
        entity("a"),
        events=(event(), event(), event(), event(client_time_us=said), event(), event()),
    )
    info = await save(subject, 4, NewSnapshot("Cart", b"four", "application/json"))
    assert (info.entity_type, info.entity_id, info.sequence) == ("cart", "a", 4)
    assert (info.position, info.event_at_us) == (6, said)
    assert (info.type, info.content_type, info.size_bytes) == ("Cart", "application/json", 4)
    assert info.recorded_at_us > 0
    assert (info.verified_at_us, info.source, info.covers, info.usable) == (0, 0, False, True)
    head, snapshot, loaded = await subject.load("a")
    assert head.snapshot_sequence == 4
    assert snapshot is not None
    assert (snapshot.sequence, snapshot.payload, snapshot.content_type) == (
        4,
        b"four",
        "application/json",
    )
    assert snapshot.recorded_at_us == info.recorded_at_us
    assert [e.sequence for e in loaded] == [5, 6]
    assert await subject.snapshots.get(subject.log, "cart", "a") == (info, b"four")
    assert await subject.snapshots.list(subject.log, "cart", "a") == [info]


async def test_an_event_without_a_time_of_its_own_happened_when_it_was_recorded(
    subject: Subject,
) -> None:
    done = await subject.put("a", 3)
    assert (await save(subject, 2)).event_at_us == done.recorded_at_us
    appended = await subject.put("a", 1, snapshot=OTHER)
    info, _ = await subject.snapshots.get(subject.log, "cart", "a")
    assert (info.sequence, info.event_at_us) == (4, appended.recorded_at_us)
    assert info.position == 4


async def test_saving_the_same_again_is_a_success_and_changes_nothing(subject: Subject) -> None:
    await subject.put("a", 4)
    first = await save(subject, 4)
    assert await save(subject, 4) == first
    assert await stored(subject) == [4]


@pytest.mark.parametrize(
    "other",
    [
        OTHER,
        NewSnapshot("Basket", FOUR.payload),
        NewSnapshot("Cart", FOUR.payload, "application/json"),
    ],
)
async def test_another_one_at_the_same_sequence_is_saved_only_to_replace(
    subject: Subject, other: NewSnapshot
) -> None:
    await subject.put("a", 4)
    first = await save(subject, 4)
    with pytest.raises(AlreadyExists):
        await save(subject, 4, other)
    assert await subject.snapshots.get(subject.log, "cart", "a") == (first, b"4")
    info = await save(subject, 4, other, replace=True)
    assert info.recorded_at_us > first.recorded_at_us
    assert await subject.snapshots.get(subject.log, "cart", "a") == (info, other.payload)
    assert await stored(subject) == [4]


@pytest.mark.parametrize("sequence", [5, 6, 2**63 - 1])
async def test_nothing_is_saved_beyond_the_last_event(subject: Subject, sequence: int) -> None:
    await subject.put("a", 4)
    with pytest.raises(InvalidArgument) as refused:
        await save(subject, sequence)
    assert refused.value.field == "sequence"
    assert await stored(subject) == []


@pytest.mark.parametrize("sequence", [0, -1, 2**63 - 1])
async def test_a_number_that_no_event_has_is_refused(subject: Subject, sequence: int) -> None:
    await subject.put("a", 1)
    with pytest.raises(InvalidArgument) as refused:
        await save(subject, sequence)
    assert refused.value.field == "sequence"


async def test_nothing_is_saved_before_the_first_event(subject: Subject) -> None:
    await subject.put("a", 2, first=40)
    with pytest.raises(InvalidArgument):
        await save(subject, 39)
    assert (await save(subject, 40)).sequence == 40


@pytest.mark.parametrize(
    ("snapshot", "error", "field"),
    [
        (NewSnapshot("", b""), InvalidArgument, "snapshot.type"),
        (NewSnapshot("S" * 256, b""), InvalidArgument, "snapshot.type"),
        (NewSnapshot("S\n", b""), InvalidArgument, "snapshot.type"),
        (NewSnapshot("S", b"", "t" * 256), InvalidArgument, "snapshot.content_type"),
        (NewSnapshot("S", b"x" * 4_000_001), TooLarge, "snapshot.payload"),
    ],
)
async def test_a_snapshot_that_is_not_valid_is_refused_and_leaves_nothing(
    subject: Subject, snapshot: NewSnapshot, error: type[Exception], field: str
) -> None:
    await subject.put("a", 1)
    with pytest.raises(error) as refused:
        await save(subject, 1, snapshot)
    assert refused.value.field == field  # type: ignore[attr-defined]
    assert await stored(subject) == []


async def test_the_largest_snapshot_comes_back_as_it_was(subject: Subject) -> None:
    await subject.put("a", 1)
    large = NewSnapshot("S", bytes(range(250)) * 16_000)
    assert (await save(subject, 1, large)).size_bytes == 4_000_000
    assert (await subject.snapshots.get(subject.log, "cart", "a"))[1] == large.payload


async def test_what_is_not_there_is_said(subject: Subject) -> None:
    calls = subject.snapshots
    with pytest.raises(EntityNotFound):
        await save(subject, 1, name="none")
    for call in (calls.get, calls.list):
        with pytest.raises(EntityNotFound):
            await call(subject.log, "cart", "none")
        with pytest.raises(LogNotFound):
            await call("nolog", "cart", "none")
    with pytest.raises(EntityNotFound):
        await calls.delete(subject.log, "cart", "none", 1)
    await subject.put("a", 1)
    with pytest.raises(NotFound):
        await calls.get(subject.log, "cart", "a")
    with pytest.raises(NotFound):
        await calls.delete(subject.log, "cart", "a", 1)
    assert await calls.list(subject.log, "cart", "a") == []


# Finding


async def test_the_newest_snapshot_up_to_a_sequence_number_is_found(subject: Subject) -> None:
    await subject.put("a", 9)
    for sequence in (6, 2, 4):
        await save(subject, sequence, NewSnapshot("Cart", b"%d" % sequence))

    async def at(sequence: int) -> int:
        info, payload = await subject.snapshots.get(subject.log, "cart", "a", sequence=sequence)
        assert payload == b"%d" % info.sequence
        return int(info.sequence)

    assert [await at(n) for n in (0, 9, 6, 5, 4, 3, 2, 2**63 - 1)] == [6, 6, 6, 4, 4, 2, 2, 6]
    with pytest.raises(NotFound):
        await at(1)


async def test_the_newest_snapshot_of_a_time_goes_by_when_its_events_happened(
    subject: Subject,
) -> None:
    times = (1_000, 3_000, 2_000, 4_000)
    for time in times:
        await subject.append(entity("a"), events=(event(client_time_us=time),))
    for sequence in (1, 2, 3, 4):
        await save(subject, sequence)

    async def at(time: int, sequence: int = 0) -> int:
        info, _ = await subject.snapshots.get(
            subject.log, "cart", "a", time_us=time, sequence=sequence
        )
        return int(info.sequence)

    assert [await at(t) for t in (1_000, 1_999, 2_000, 3_000, 3_999, 4_000)] == [1, 1, 3, 3, 3, 4]
    assert await at(3_000, 2) == 2
    with pytest.raises(NotFound):
        await at(999)
    with pytest.raises(InvalidArgument):
        await at(-1)


async def test_snapshots_are_listed_newest_first_in_pages(subject: Subject) -> None:
    await subject.put("a", 7)
    await subject.put("b", 7)
    for sequence in (3, 7, 1, 5):
        await save(subject, sequence)
    await save(subject, 6, name="b")

    async def page(**of: int) -> list[int]:
        found = await subject.snapshots.list(subject.log, "cart", "a", **of)
        return [info.sequence for info in found]

    assert await page() == [7, 5, 3, 1]
    assert await page(limit=3) == [7, 5, 3]
    assert await page(before=3, limit=3) == [1]
    assert await page(before=1) == []
    for limit in (0, 1_001):
        with pytest.raises(InvalidArgument):
            await page(limit=limit)


# Deleting


async def test_a_deleted_snapshot_is_nowhere_and_the_newest_two_stay(subject: Subject) -> None:
    await subject.put("a", 8)
    for sequence in (2, 4, 6, 8):
        await save(subject, sequence)
    delete = subject.snapshots.delete
    for sequence in (8, 6):
        with pytest.raises(Conflict):
            await delete(subject.log, "cart", "a", sequence)
    await delete(subject.log, "cart", "a", 4)
    assert await stored(subject) == [8, 6, 2]
    info, _ = await subject.snapshots.get(subject.log, "cart", "a", sequence=5)
    assert info.sequence == 2
    _, snapshot, loaded = await subject.load("a", to_sequence=5)
    assert snapshot is not None
    assert (snapshot.sequence, [e.sequence for e in loaded]) == (2, [3, 4, 5])
    with pytest.raises(NotFound):
        await delete(subject.log, "cart", "a", 4)
    await delete(subject.log, "cart", "a", 2)
    with pytest.raises(Conflict):
        await delete(subject.log, "cart", "a", 8)


async def test_a_deleted_snapshot_leaves_its_place_to_another_one(subject: Subject) -> None:
    await subject.put("a", 3)
    for sequence in (1, 2, 3):
        await save(subject, sequence)
    await subject.snapshots.delete(subject.log, "cart", "a", 1)
    assert (await save(subject, 1, OTHER)).size_bytes == len(OTHER.payload)
    assert await stored(subject) == [3, 2, 1]


async def test_the_snapshot_that_the_floor_rests_on_stays_as_it_is(subject: Subject) -> None:
    await subject.put("a", 9)
    for sequence in (2, 4, 6, 8):
        await save(subject, sequence)
    await subject.set_floor("a", 5)
    covers = {s.sequence: s.covers for s in await subject.snapshots.list(subject.log, "cart", "a")}
    assert covers == {8: False, 6: False, 4: True, 2: False}
    with pytest.raises(Conflict, match="floor"):
        await subject.snapshots.delete(subject.log, "cart", "a", 4)
    for replace in (False, True):
        with pytest.raises(Conflict):
            await save(subject, 4, OTHER, replace=replace)
    for sequence in (1, 3):  # below it nothing is saved
        with pytest.raises(Conflict):
            await save(subject, sequence)
    before = await subject.snapshots.get(subject.log, "cart", "a", sequence=4)
    assert (await save(subject, 4)).sequence == 4, "a retry of what was saved"
    assert await subject.snapshots.get(subject.log, "cart", "a", sequence=4) == before
    assert (await save(subject, 5)).sequence == 5
    await subject.snapshots.delete(subject.log, "cart", "a", 2)
    assert await stored(subject) == [8, 6, 5, 4]


async def test_of_saves_at_once_one_wins_and_the_others_are_told(subject: Subject) -> None:
    await subject.put("a", 2)
    results = await asyncio.gather(
        *(save(subject, 1, NewSnapshot("Cart", b"%d" % (i % 4))) for i in range(12)),
        return_exceptions=True,
    )
    won = [i % 4 for i, result in enumerate(results) if isinstance(result, SnapshotInfo)]
    lost = [i % 4 for i, result in enumerate(results) if isinstance(result, AlreadyExists)]
    assert len(won) + len(lost) == 12
    assert len(set(won)) == 1
    assert sorted(set(lost)) == sorted({0, 1, 2, 3} - set(won))
    _, payload = await subject.snapshots.get(subject.log, "cart", "a")
    assert payload == b"%d" % won[0]


async def test_deletes_at_once_never_take_one_of_the_newest_two(subject: Subject) -> None:
    await subject.put("a", 6)
    for sequence in range(1, 7):
        await save(subject, sequence)
    results = await asyncio.gather(
        *(subject.snapshots.delete(subject.log, "cart", "a", n) for n in range(1, 7)),
        return_exceptions=True,
    )
    assert [isinstance(result, Conflict) for result in results] == [False] * 4 + [True] * 2
    assert await stored(subject) == [6, 5]


# Entity types


async def test_a_type_is_set_whole_and_each_time_has_a_version(subject: Subject) -> None:
    kind = f"kind-{subject.log}"
    with pytest.raises(NotFound):
        await subject.kinds.get(kind)
    settings = TypeSettings(
        needs_full_replay=False, snapshot_types=("Cart", "CartV2"),
        snapshot_every=100, snapshot_age_s=3_600, keep_snapshots=5,
    )  # fmt: skip
    first = await subject.kinds.put(kind, settings, version=0, principal="ann")
    assert (first.name, first.settings, first.version) == (kind, settings, 1)
    assert first.updated_at_us > 0
    by = "grpc:ipv4:127.0.0.1" if subject.kind == "client" else "ann"
    assert first.updated_by == by
    assert await subject.kinds.get(kind) == first
    for version in (0, 2):
        with pytest.raises(Conflict):
            await subject.kinds.put(kind, TypeSettings(), version=version, principal="ben")
    assert await subject.kinds.get(kind) == first
    second = await subject.kinds.put(kind, TypeSettings(), version=1, principal="ben")
    assert (second.settings, second.version) == (TypeSettings(), 2)
    third = await subject.kinds.put(kind, settings, version=None, principal="ben")
    assert (third.settings, third.version) == (settings, 3)


@pytest.mark.parametrize("wrong", [{"needs_full_replay": True}, {"snapshot_types": ("Other",)}])
async def test_no_setting_takes_away_what_compacted_entities_rest_on(
    subject: Subject, wrong: dict[str, Any]
) -> None:
    kind = await put_type(subject, snapshot_every=5)
    for name in ("a", "b"):
        await subject.put(name, 3, kind=kind)
        await save(subject, 2, name=name, kind=kind)
        await subject.set_floor(name, 3, kind=kind)
    before = await subject.kinds.get(kind)
    with pytest.raises(Conflict, match=r"2 entities of the type .* snapshots of the type 'Cart'"):
        await subject.kinds.put(kind, TypeSettings(**wrong), version=None, principal="ann")
    assert await subject.kinds.get(kind) == before
    assert await subject.sequences("a", kind=kind) == [3]
    both = TypeSettings(snapshot_types=("Other", "Cart"))
    await subject.kinds.put(kind, both, version=None, principal="ann")
    for name in ("a", "b"):
        await subject.set_floor(name, 1, kind=kind)
    await subject.kinds.put(kind, TypeSettings(**wrong), version=None, principal="ann")


async def test_types_are_listed_by_name_whether_set_or_not(subject: Subject) -> None:
    names = [f"t{subject.log}{letter}" for letter in "abc"]
    await subject.kinds.put(names[1], TypeSettings(), version=None, principal="ann")
    for name in (names[2], names[0]):
        await subject.put("a", 1, kind=name)

    async def page(after: str, limit: int = 100) -> list[tuple[str, int]]:
        found = await subject.kinds.list(after, limit)
        return [(t.name, t.version) for t in found if t.name.startswith(f"t{subject.log}")]

    assert await page(names[0][:-1]) == [(names[0], 0), (names[1], 1), (names[2], 0)]
    assert await page(names[0], 1) == [(names[1], 1)]
    assert (await subject.kinds.get(names[0])).settings == TypeSettings()
    with pytest.raises(InvalidArgument):
        await page("", 0)


@pytest.mark.parametrize(
    ("of", "field"),
    [
        ({"snapshot_every": -1}, "snapshot_every"),
        ({"snapshot_every": 1_000_001}, "snapshot_every"),
        ({"snapshot_age_s": 10 * 365 * 86_400 + 1}, "snapshot_age_s"),
        ({"keep_snapshots": 1}, "keep_snapshots"),
        ({"snapshot_types": ("x",) * 21}, "snapshot_types"),
        ({"snapshot_types": ("",)}, "snapshot_types"),
    ],
)
async def test_settings_over_their_limits_are_refused(
    subject: Subject, of: dict[str, Any], field: str
) -> None:
    kind = f"kind-{subject.log}"
    with pytest.raises(InvalidArgument) as refused:
        await subject.kinds.put(kind, TypeSettings(**of), version=None, principal="ann")
    assert refused.value.field == field
    with pytest.raises(NotFound):
        await subject.kinds.get(kind)
    for name in ("", "a/b", "x" * 256):
        with pytest.raises(InvalidArgument):
            await subject.kinds.put(name, TypeSettings(), version=None, principal="ann")


async def test_settings_hold_from_the_next_load_on(subject: Subject) -> None:
    kind = await put_type(subject)
    await subject.put("a", 3, kind=kind)
    await save(subject, 2, kind=kind)
    assert (await subject.load("a", kind=kind))[1] is not None
    await put_type(subject, needs_full_replay=True)
    head, snapshot, loaded = await subject.load("a", kind=kind)
    assert (snapshot, head.snapshot_sequence, len(loaded)) == (None, 0, 3)
    info, _ = await subject.snapshots.get(subject.log, kind, "a")
    assert not info.usable, "it is there, and loads do not use it"
    cart = TypeSettings(snapshot_types=("Cart",))
    if subject.kind == "client":  # without a role, over gRPC, nobody takes that away
        with pytest.raises(PermissionDenied):
            await subject.kinds.put(kind, cart, version=None, principal="ann")
        return
    await subject.kinds.put(kind, cart, version=None, principal="ann")
    assert (await subject.load("a", kind=kind))[1] is not None


# What is due


async def due(subject: Subject, kind: str, after: str = "", limit: int = 100) -> list[Any]:
    page = await subject.snapshots.due(subject.log, kind, after, limit)
    return [(d.entity_id, d.sequence, d.snapshot_sequence, d.reason) for d in page.entities]


async def test_an_entity_is_due_after_so_many_events_since_its_newest_usable_snapshot(
    subject: Subject,
) -> None:
    kind = await put_type(subject, snapshot_every=3, snapshot_types=("Cart",))
    await subject.put("few", 2, kind=kind)
    await subject.put("many", 3, kind=kind)
    await subject.put("own", 2, kind=kind, first=40)
    await subject.put("saved", 5, kind=kind)
    await save(subject, 3, kind=kind, name="saved")
    await subject.put("old", 6, kind=kind)
    await save(subject, 3, kind=kind, name="old")
    await subject.put("useless", 6, kind=kind)
    await save(subject, 6, NewSnapshot("Other", b""), kind=kind, name="useless")
    await subject.put("ended", 9, kind=kind)
    await subject.set_state("ended", "deleted", kind=kind)
    assert await due(subject, kind) == [
        ("many", 3, 0, "events"),
        ("old", 6, 3, "events"),
        ("useless", 6, 0, "events"),
    ]
    assert [d[0] for d in await due(subject, kind, "many")] == ["old", "useless"]
    page = await subject.snapshots.due(subject.log, kind, "", 2)
    assert ([d.entity_id for d in page.entities], page.after) == (["many", "old"], "old")
    page = await subject.snapshots.due(subject.log, kind, page.after, 2)
    assert ([d.entity_id for d in page.entities], page.after) == (["useless"], "")
    await save(subject, 3, kind=kind, name="many")
    assert [d[0] for d in await due(subject, kind)] == ["old", "useless"]


async def test_an_entity_is_due_when_its_oldest_event_without_a_snapshot_is_too_old(
    subject: Subject,
) -> None:
    kind = await put_type(subject, snapshot_age_s=3_600)
    now = clock.now_us()
    for name, ages in (("new", (60,)), ("old", (7_200, 60)), ("covered", (7_200, 60))):
        for age in ages:
            await subject.journal.append(
                subject.log,
                Append((entity(name, kind=kind),), (event(client_time_us=now - age * 1_000_000),)),
            )
    await save(subject, 1, kind=kind, name="covered")
    await subject.put("whole", 1, kind=kind)
    await save(subject, 1, kind=kind, name="whole")
    assert await due(subject, kind) == [("old", 2, 0, "age")]


async def test_nothing_is_due_without_a_policy_or_where_snapshots_are_of_no_use(
    subject: Subject,
) -> None:
    kind = await put_type(subject)
    await subject.put("a", 9, kind=kind)
    assert await due(subject, kind) == []
    await put_type(subject, snapshot_every=1, snapshot_age_s=1, needs_full_replay=True)
    assert await due(subject, kind) == []
    with pytest.raises(NotFound):
        await due(subject, "never-heard-of")
    with pytest.raises(LogNotFound):
        await subject.snapshots.due("nolog", kind)
    with pytest.raises(InvalidArgument):
        await due(subject, kind, "a\0")


# Hints


async def hints(subject: Subject, *counts: int, kind: str, **of: Any) -> list[bool]:
    """Whether appends of so many events each say that a snapshot is due."""
    return [
        (await subject.put("a", count, kind=kind, **of)).entities[0].snapshot_due
        for count in counts
    ]


async def test_an_append_that_reaches_or_crosses_a_multiple_says_that_a_snapshot_is_due(
    subject: Subject,
) -> None:
    kind = f"kind-{subject.log}"
    await subject.set_type(kind, TypeRules(snapshot_every=4))
    # 3, 4, 5, 7, 9, 17, 18
    assert await hints(subject, 3, 1, 1, 2, 2, 8, 1, kind=kind) == [
        False, True, False, False, True, True, False,
    ]  # fmt: skip


async def test_an_append_that_brings_a_snapshot_gets_no_hint_and_its_neighbours_do(
    subject: Subject,
) -> None:
    kind = f"kind-{subject.log}"
    await subject.set_type(kind, TypeRules(snapshot_every=2))
    done = await subject.append(
        entity("a", kind=kind, snapshot=FOUR),
        entity("b", kind=kind),
        entity("c", kind=kind),
        entity("d"),
        events=events(2) + events(2, 1) + events(1, 2) + events(2, 3),
    )
    assert [e.snapshot_due for e in done.entities] == [False, True, False, False]


async def test_a_repeated_append_gets_the_same_hint_again(subject: Subject) -> None:
    kind = f"kind-{subject.log}"
    await subject.set_type(kind, TypeRules(snapshot_every=2))
    append = Append((entity("a", kind=kind),), events(2), new_id())
    first = await subject.journal.append(subject.log, append)
    assert first.entities[0].snapshot_due
    again = await subject.journal.append(subject.log, append)
    assert again == first._replace(duplicate=True)


async def test_a_type_that_needs_full_replay_or_has_no_policy_gets_no_hint(
    subject: Subject,
) -> None:
    kind = f"kind-{subject.log}"
    assert await hints(subject, 2, kind=kind) == [False]
    await subject.set_type(kind, TypeRules(snapshot_every=1))
    assert await hints(subject, 1, kind=kind) == [True]
    await subject.set_type(kind, TypeRules(needs_full_replay=True, snapshot_every=1))
    assert await hints(subject, 1, kind=kind) == [False]


async def test_appends_save_and_events_of_several_entities_at_once_do_not_disturb_each_other(
    subject: Subject,
) -> None:
    await subject.put("a", 1)

    async def write() -> None:
        for _ in range(10):
            await subject.append(entity("a", snapshot=FOUR), events=events(2))

    async def keep() -> None:
        for _ in range(10):
            last = (await subject.entity("a")).sequence
            await save(subject, last, FOUR, replace=True)

    await asyncio.gather(write(), keep(), keep())
    assert (await subject.verify()).ok
    found = await stored(subject)
    assert {n for n in found if n > 1} >= set(range(3, 22, 2))
