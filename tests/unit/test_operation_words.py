"""What the command line says of plans of tasks: their own words; for nothing, nothing to apply."""

from __future__ import annotations

from typing import Any

import pytest

from everstate.commands import operation_words


def row(**more: Any) -> dict[str, Any]:
    return {
        "id": "op-1", "kind": "seek", "target": "mail", "digest": "d", "sentence": "Go.",
        "items": 1, "entities": 0, "events": 99, "bytes": 0, "excluded": {}, "warnings": [],
        "consumers": [], "undoable": False, "undo_seconds": 0, "estimated_seconds": 0,
        "expires_at": "2026-01-01T00:00:00.000000Z",
    } | more  # fmt: skip


def test_a_task_acts_on_its_target_and_its_group_is_not_needed_by_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = {"name": "mail", "members": 2, "again": 0, "skipped": 99}
    operation_words.plan(row(consumers=[group]))
    said = capsys.readouterr().out
    assert "  acts on     mail: 99 events\n" in said
    assert "  group       mail: 2 members, 0 events come again, 99 events never come\n" in said
    assert "needed by" not in said
    assert "of 0 entities" not in said
    operation_words.plan(row(kind="replay", target="files", entities=680, events=12_253))
    assert "  acts on     files: 680 entities, 12,253 events\n" in capsys.readouterr().out


def test_who_needs_events_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    reader = {"name": "group mail", "position": 1_234, "entities": 3}
    operation_words.plan(row(kind="compact", target="", entities=4, consumers=[reader]))
    said = capsys.readouterr().out
    assert "  acts on     1 of 4 entities: 99 events\n" in said
    assert "  needed by   group mail, which is at position 1,234: keeps 3 entities out\n" in said


@pytest.mark.parametrize("target", ["", "mail"])
def test_a_plan_without_items_is_nothing_to_do(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    operation_words.plan(row(items=0, events=0, target=target, kind="replay-parked"))
    said = capsys.readouterr().out
    assert said.endswith("\nThere is nothing to do.\n")
    assert "operation apply" not in said
