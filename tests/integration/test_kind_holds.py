"""hold and release: what they change, what they leave, and that undo gives back the same rows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from journal.model import ANY, Append, EntityAppend, NewEvent
from journal.store import StoreJournal
from kernel.errors import InvalidArgument, LogNotFound
from operations.holds import list_entity_holds, list_holds
from operations.kinds import kind_named
from tests.operating import plan, put, put_many, table

HOLDS, MARKS = ("holds", "entity_key, label"), ("entity_marks", "entity_key")


async def both(store: StoreJournal) -> tuple[list[str], list[str]]:
    return await table(store.database, *HOLDS), await table(store.database, *MARKS)


async def held(store: StoreJournal) -> list[str]:
    rows = await store.database.fetch(
        "SELECT e.entity_id FROM everstate.entity_marks m JOIN everstate.entities e"
        " USING (log_id, entity_key) WHERE m.held ORDER BY 1"
    )
    return [row[0] for row in rows]


async def apply(store: StoreJournal, kind: str, *ids: str, **parameters: Any) -> Any:
    made = await plan(store, kind, list(ids) or None, **parameters)
    await made.apply()
    return made


async def test_a_hold_has_the_reason_the_person_and_the_operation(store: StoreJournal) -> None:
    await put(store, "a", "b", "c")
    made = await plan(
        store, "hold", ["a", "b"], row={"reason": "trial 7", "applied_by": "eve"}, label="legal"
    )
    assert made.sentence == (
        "Hold 2 entities under 'legal': nothing of them can be removed until they are released."
    )
    assert await made.apply() == {"a": ("DONE", ""), "b": ("DONE", "")}
    found = await list_holds(store.database, "default")
    assert [(h.entity_type, h.entity_id, h.label, h.reason, h.principal) for h in found] == [
        ("cart", "a", "legal", "trial 7", "eve"),
        ("cart", "b", "legal", "trial 7", "eve"),
    ]
    assert {h.operation for h in found} == {made.row.id}
    assert await held(store) == ["a", "b"]


async def test_what_is_held_under_the_label_is_left_out_and_other_labels_are_added(
    store: StoreJournal,
) -> None:
    await put(store, "a", "b")
    await apply(store, "hold", "a", label="audit")
    again = await plan(store, "hold", label="audit")
    assert (again.excluded, [i.entity_id for i in again.items]) == ({"a": "current"}, ["b"])
    other = await plan(store, "hold", label="legal")
    assert (other.excluded, len(other.items)) == ({}, 2)
    await other.apply()
    assert [h.label for h in await list_entity_holds(store.database, "default", "cart", "a")] == [
        "audit",
        "legal",
    ]


async def test_an_entity_is_held_until_its_last_hold_ends(store: StoreJournal) -> None:
    await put(store, "a")
    await apply(store, "hold", "a", label="audit")
    await apply(store, "hold", "a", label="legal")
    await apply(store, "release", "a", label="audit")
    assert await held(store) == ["a"]
    await apply(store, "release", "a", label="legal")
    assert await held(store) == []
    assert await table(store.database, *HOLDS) == []


async def test_release_leaves_out_what_has_no_such_hold(store: StoreJournal) -> None:
    await put(store, "a", "b", "c")
    await apply(store, "hold", "a")
    await apply(store, "hold", "b", label="legal")
    assert (await plan(store, "release")).excluded == {"b": "not_held", "c": "not_held"}
    assert (await plan(store, "release", all=True)).excluded == {"c": "not_held"}


async def test_undo_of_a_release_brings_back_equal_rows(store: StoreJournal) -> None:
    ids = await put_many(store, 30)
    await apply(store, "hold", *ids, label="audit")
    await apply(
        store, "hold", *ids[:10], label="legal", row={"reason": "é\n'\"", "applied_by": "x"}
    )
    before = await both(store)
    release = await plan(store, "release", all=True, steps=7)
    await release.apply()
    assert await held(store) == []
    await release.undo()
    assert await both(store) == before


async def test_undo_of_a_hold_removes_what_it_added_and_nothing_else(store: StoreJournal) -> None:
    await put(store, "a", "b")
    await apply(store, "hold", "a", label="audit")
    before = await both(store)
    made = await plan(store, "hold", label="legal")
    await made.apply()
    await made.undo()
    holds, marks = await both(store)
    assert holds == before[0]
    assert marks[0] == before[1][0]
    assert await held(store) == ["a"]


async def test_undo_of_a_hold_leaves_one_that_somebody_else_has_made_since(
    store: StoreJournal,
) -> None:
    await put(store, "a", "b")
    made = await apply(store, "hold", "a", "b")
    await apply(store, "release", "a")
    other = await apply(store, "hold", "a")
    assert await made.undo() == {"a": ("NOT_UNDONE", "changed"), "b": ("UNDONE", "")}
    assert [h.operation for h in await list_holds(store.database, "default")] == [other.row.id]
    assert await held(store) == ["a"]


async def test_undo_of_a_release_leaves_a_hold_that_is_there_again(store: StoreJournal) -> None:
    await put(store, "a", "b")
    await apply(store, "hold", "a", "b")
    release = await apply(store, "release", "a", "b")
    other = await apply(store, "hold", "a")
    assert await release.undo() == {"a": ("NOT_UNDONE", "changed"), "b": ("UNDONE", "")}
    by_id = {h.entity_id: h.operation for h in await list_holds(store.database, "default")}
    assert by_id["a"] == other.row.id
    assert by_id["b"] != other.row.id
    assert await held(store) == ["a", "b"]


async def test_what_changed_between_plan_and_step_is_skipped_with_the_reason(
    store: StoreJournal,
) -> None:
    await put(store, "a", "b")
    late = await plan(store, "hold")
    await apply(store, "hold", "a")
    assert await late.apply() == {"a": ("SKIPPED", "current"), "b": ("DONE", "")}
    late = await plan(store, "release")
    await apply(store, "release", "b")
    assert await late.apply() == {"a": ("DONE", ""), "b": ("SKIPPED", "not_held")}


async def test_a_step_that_is_rolled_back_leaves_nothing(store: StoreJournal) -> None:
    await put(store, "a")
    before = await both(store)
    made = await plan(store, "hold")
    await made.killed()
    assert await both(store) == before
    assert await made.apply() == {"a": ("DONE", "")}


async def test_holds_and_releases_at_once_leave_marks_that_are_true(store: StoreJournal) -> None:
    ids = await put_many(store, 60)

    async def churn(label: str, backwards: bool) -> None:
        for _ in range(6):
            for kind in ("hold", "release"):
                made = await plan(store, kind, ids, label=label, steps=25)
                if backwards:
                    made.items.reverse()
                await made.apply()

    labels = ("audit", "legal", "tax")
    await asyncio.gather(
        *(churn(label, backwards) for label in labels for backwards in (False, True))
    )
    wrong = await store.database.fetch(
        "SELECT m.entity_key FROM everstate.entity_marks m WHERE m.held <> EXISTS (SELECT FROM"
        " everstate.holds h WHERE h.log_id = m.log_id AND h.entity_key = m.entity_key)"
    )
    assert wrong == []


async def test_marks_made_for_a_hold_begin_at_the_entitys_first_event(store: StoreJournal) -> None:
    await store.append(
        "default", Append((EntityAppend("cart", "late", ANY, 41),), (NewEvent("Added", b""),) * 3)
    )
    before = await store.get_entity("default", "cart", "late")
    await apply(store, "hold", "late")
    assert await store.get_entity("default", "cart", "late") == before
    assert before.floor == 41


async def test_holds_come_in_pages(store: StoreJournal) -> None:
    await put(store, "a", "b", "c")
    await put(store, "a", "z", kind="order")
    await apply(store, "hold", label="audit")
    await apply(store, "hold", "a", label="legal")
    everything = await list_holds(store.database, "default")
    assert [(h.label, h.entity_type, h.entity_id) for h in everything] == [
        ("audit", "cart", "a"), ("audit", "cart", "b"), ("audit", "cart", "c"),
        ("audit", "order", "a"), ("audit", "order", "z"),
        ("legal", "cart", "a"), ("legal", "order", "a"),
    ]  # fmt: skip
    found, after = [], ("", "", "")
    while page := await list_holds(store.database, "default", after=after, limit=2):
        found += page
        after = (page[-1].label, page[-1].entity_type, page[-1].entity_id)
    assert found == everything
    assert await list_holds(store.database, "default", "legal") == everything[5:]
    assert await list_holds(store.database, "_system") == []
    one = await list_entity_holds(store.database, "default", "cart", "a", limit=1)
    rest = await list_entity_holds(store.database, "default", "cart", "a", one[0].label)
    assert [h.label for h in one + rest] == ["audit", "legal"]


@pytest.mark.parametrize("limit", [0, 1001, -1])
async def test_pages_of_holds_have_limits(store: StoreJournal, limit: int) -> None:
    with pytest.raises(InvalidArgument, match="limit"):
        await list_holds(store.database, "default", limit=limit)
    with pytest.raises(LogNotFound):
        await list_holds(store.database, "nolog")


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        ("hold", {"label": "Legal"}, "parameters.label"),
        ("hold", {"label": "a" * 41}, "parameters.label"),
        ("hold", {"label": ""}, "parameters.label"),
        ("hold", {"label": 7}, "parameters.label"),
        ("hold", {"labels": "a"}, "parameters.labels"),
        ("hold", {"all": True}, "parameters.all"),
        ("release", {"label": "a b"}, "parameters.label"),
        ("release", {"all": 1}, "parameters.all"),
        ("release", {"all": True, "label": "audit"}, "parameters.all"),
        ("release", {"force": True}, "parameters.force"),
    ],
)
async def test_bad_parameters_are_refused_with_their_name(
    kind: str, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        kind_named(kind).parameters(given)
    assert refused.value.field == field
