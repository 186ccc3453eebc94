"""Operations by the command line, beside a running `everstate dev`."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import SAMPLE, SAMPLE_EVENTS, Dev, Said, clean_env, cli, start

TOP = "psycopg/docs/news.rst"


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    running = Dev(tmp_path_factory.mktemp("dev") / "folder")
    running.start()
    running.cli("import", SAMPLE).ok()
    for name in ("files", "folders", "spans"):
        running.cli("projection", "wait", name, "--position", str(SAMPLE_EVENTS)).ok()
    yield running
    running.close()


def planned(dev: Dev, *arguments: str) -> dict[str, Any]:
    row: dict[str, Any] = dev.cli("operation", "plan", *arguments, "--json").ok().json()
    return row


def applied(dev: Dev, row: dict[str, Any], *arguments: str) -> Said:
    return dev.cli(
        "operation", "apply", row["id"], "--reason", "a test", "--wait", "--timeout", "60",
        "--json", *arguments,
    )  # fmt: skip


def test_the_command_that_a_plan_shows_applies_it(dev: Dev) -> None:
    said = dev.cli("operation", "plan", "hold", "--entity", f"file/{TOP}").ok().out
    assert "NOTHING HAS BEEN CHANGED YET" in said
    assert re.search(r"acts on +1 of 1 entities: 306 events\n", said)
    assert "undo        for 7 days" in said
    assert dev.cli("hold", "list").ok().out == ""
    shown = re.search(r"^  everstate (operation apply .*) --reason", said, re.MULTILINE)
    assert shown is not None
    done = dev.cli(*shown[1].split(), "--reason", "as shown", "--wait").ok().out
    assert re.search(r"^op-\S+  hold: DONE  \(1 done of 1\)$", done, re.MULTILINE)
    assert "everstate operation undo op-" in done
    [hold] = dev.cli("hold", "list", "--json").ok().lines()
    assert (hold["entity_id"], hold["reason"]) == (TOP, "as shown")
    undone = dev.cli("operation", "undo", hold["operation"], "--reason", "enough", "--wait")
    assert "hold: UNDONE" in undone.ok().out
    assert dev.cli("hold", "list", "--json").ok().out == ""


def test_a_plan_with_nothing_to_do_is_a_plan(dev: Dev) -> None:
    said = dev.cli("operation", "plan", "release", "--type", "file").ok().out
    assert "There is nothing to do." in said
    assert "680  no such hold is on it (not_held)" in said
    assert "operation apply" not in said
    row = planned(dev, "release", "--type", "file")
    assert (row["items"], row["excluded"]) == (0, {"not_held": 680})
    assert {"id", "digest", "entities", "events", "bytes", "excluded"} <= row.keys()


def test_what_is_wrong_with_a_plan_is_a_sentence_and_exit_2(dev: Dev) -> None:
    said = dev.cli("operation", "plan", "hold", "--where", "type:file colour:red")
    assert said.code == 2
    assert "colour" in said.sentence()
    assert dev.cli("operation", "plan", "nosuch").code == 2
    assert dev.cli("operation", "plan", "hold", "--from", "yesterday").code == 2
    assert dev.cli("operation", "plan", "hold", "--param", "label").code == 2
    assert dev.cli("hold", "add", "--reason", "everything by mistake").code == 2
    assert dev.cli("operation", "show", "op-01900000-0000-7000-8000-000000000000").code == 3


def test_a_hold_is_added_listed_and_released_in_one_go_each(dev: Dev) -> None:
    where = "type:file id:psycopg/docs/*"
    row = dev.cli(
        "hold", "add", "--where", where, "--label", "lawsuit", "--reason", "case 12", "--wait",
        "--json",
    ).ok().json()  # fmt: skip
    assert (row["state"], row["reason"]) == ("done", "case 12")
    holds = dev.cli("hold", "list", "--label", "lawsuit", "--json").ok().lines()
    assert len(holds) == row["progress"]["done"] > 10
    items = dev.cli("operation", "show", row["id"], "--items", "--json").ok().lines()
    assert {item["entity_id"] for item in items} == {hold["entity_id"] for hold in holds}
    assert {item["state"] for item in items} == {"done"}
    again = planned(dev, "hold", "--where", where, "--param", "label=lawsuit")
    assert (again["items"], again["excluded"]) == (0, {"current": len(holds)})
    ended = dev.cli(
        "hold", "release", "--type", "file", "--label", "lawsuit", "--reason", "closed", "--wait"
    )
    assert "release: DONE" in ended.ok().out
    assert dev.cli("hold", "list", "--json").ok().out == ""
    listed = dev.cli("operation", "list", "--kind", "release", "--state", "done", "--json").ok()
    assert [found["reason"] for found in listed.lines()] == ["closed"]


def test_a_hold_or_a_release_of_nothing_says_so_and_is_exit_4(dev: Dev) -> None:
    label = ("--label", "case_9", "--reason", "case 9")
    none = dev.cli("hold", "add", "--where", "type:file id:nope*", *label, "--wait")
    assert (none.code, "the selection finds no entity" in none.sentence()) == (4, True)
    assert "acts on     0 of 0 entities" in none.out
    said = dev.cli("hold", "add", "--entity", f"file/{TOP}", *label, "--wait").ok().out
    assert said.index("acts on     1 of 1") < said.index("hold: DONE  (1 done of 1)")
    again = dev.cli("hold", "add", "--entity", f"file/{TOP}", *label, "--wait").ok().out
    assert "1 are held under this label already" in again
    assert dev.cli("hold", "add", "--entity", f"file/{TOP}", *label, "--json").ok().json()[
        "excluded"
    ] == {"current": 1}
    slip = ("--label", "case_8", "--reason", "closed", "--wait")
    wrong = dev.cli("hold", "release", "--type", "file", *slip)
    assert wrong.code == 4
    assert "680: no such hold is on it (not_held)" in wrong.sentence()
    assert len(dev.cli("hold", "list", "--label", "case_9", "--json").ok().lines()) == 1
    dev.cli("hold", "release", "--entity", f"file/{TOP}", *label, "--wait").ok()
    assert dev.cli("operation", "list", "--state", "queued", "--json").ok().out == ""


def test_what_is_typed_is_typed_by_a_person(dev: Dev) -> None:
    dev.cli("policy", "set", "hold", "--typed").ok()
    hold = ("hold", "add", "--entity", f"file/{TOP}", "--reason", "r", "--wait")
    refused = dev.cli(*hold)
    assert (refused.code, f"type 'file/{TOP}'" in refused.sentence()) == (2, True)
    assert dev.cli(*hold, "--typed", "file").code == 2
    assert dev.cli("hold", "list", "--json").ok().out == ""
    row = dev.cli(*hold, "--typed", f"file/{TOP}", "--json").ok().json()
    dev.cli("operation", "undo", row["id"], "--reason", "clean", "--wait").ok()
    dev.cli("policy", "set", "hold", "--no-typed").ok()


def test_waiting_for_what_waits_for_a_person_ends_at_once(dev: Dev) -> None:
    dev.cli("policy", "set", "hold", "--second-person").ok()
    row = planned(dev, "hold", "--entity", f"file/{TOP}")
    watched = dev.cli("operation", "watch", row["id"])
    assert (watched.code, "was not applied" in watched.sentence()) == (4, True)
    waits = dev.cli("operation", "apply", row["id"], "--reason", "r", "--wait")
    assert (waits.code, "waits for a second person" in waits.sentence()) == (4, True)
    assert "hold: AWAITING" in waits.out
    dev.cli("operation", "cancel", row["id"]).ok()
    dev.cli("policy", "set", "hold", "--no-second-person").ok()
    row = planned(dev, "hold", "--type", "file", "--rate", "5")
    dev.cli("operation", "apply", row["id"], "--reason", "slowly").ok()
    dev.cli("operation", "pause", row["id"]).ok()
    paused = dev.cli("operation", "watch", row["id"], "--timeout", "30")
    assert (paused.code, "is paused until somebody resumes it" in paused.sentence()) == (4, True)
    dev.cli("operation", "cancel", row["id"]).ok()
    dev.cli("operation", "watch", row["id"], "--timeout", "30")
    if dev.cli("operation", "show", row["id"], "--json").ok().json()["progress"]["done"]:
        dev.cli("operation", "undo", row["id"], "--reason", "clean", "--wait").ok()


def test_another_digest_an_expired_plan_and_a_cancelled_one_are_exit_4(dev: Dev) -> None:
    row = planned(dev, "hold", "--type", "file")
    assert applied(dev, row, "--digest", "0" * 64).code == 4
    assert dev.cli("operation", "cancel", row["id"]).ok().out.count("CANCELLED") == 1
    assert applied(dev, row).code == 4
    assert dev.cli("operation", "watch", row["id"]).code == 4
    assert dev.cli("operation", "pause", row["id"]).code == 4


def test_waiting_has_a_deadline_and_the_operation_goes_on(dev: Dev) -> None:
    row = planned(dev, "hold", "--type", "file", "--rate", "50")
    late = dev.cli(
        "operation", "apply", row["id"], "--reason", "slowly", "--wait", "--timeout", "1"
    )
    assert late.code == 6
    assert "it goes on" in late.sentence()
    assert dev.cli("operation", "pause", row["id"]).code == 0
    assert dev.cli("operation", "resume", row["id"]).code == 0
    assert dev.cli("operation", "cancel", row["id"]).code == 0
    assert dev.cli("operation", "watch", row["id"], "--timeout", "30").code == 4
    after = dev.cli("operation", "show", row["id"], "--json").ok().json()
    assert after["state"] == "cancelled"
    held = dev.cli("hold", "list", "--json").ok().lines()
    assert len(held) == after["progress"]["done"] < 680
    if held:
        dev.cli("operation", "undo", row["id"], "--reason", "clean", "--wait").ok()
        assert dev.cli("hold", "list", "--json").ok().out == ""


def test_an_interrupted_watch_says_what_becomes_of_the_operation(dev: Dev) -> None:
    row = planned(dev, "hold", "--type", "file", "--rate", "20")
    dev.cli("operation", "apply", row["id"], "--reason", "slowly").ok()
    env = clean_env(EVERSTATE_DEV_DIR=dev.folder)
    with start("operation", "watch", row["id"], "--json", env=env) as watching:
        watching.until('"state":"running"')
        assert watching.end(signal.SIGINT) == 130
        assert f"{row['id']} goes on in the workers" in watching.text
    assert dev.cli("operation", "cancel", row["id"]).code == 0
    dev.cli("operation", "watch", row["id"], "--timeout", "30")
    dev.cli("operation", "undo", row["id"], "--reason", "clean", "--wait", "--timeout", "60").ok()
    assert dev.cli("hold", "list", "--json").ok().out == ""


def test_policy_wants_a_second_person(dev: Dev) -> None:
    dev.cli("policy", "set", "hold", "--second-person", "--expires", "1h").ok()
    assert "two persons" in dev.cli("policy", "show", "hold").ok().out
    row = planned(dev, "hold", "--entity", f"file/{TOP}")
    waits = dev.cli("operation", "apply", row["id"], "--reason", "first").ok().out
    assert "waits for a second person" in waits
    again = dev.cli("operation", "apply", row["id"], "--reason", "me again", "--json").ok().json()
    assert again["state"] == "awaiting"
    token = dev.cli("token", "create", "second", "--role", "operator").ok().out.strip()
    env = clean_env(EVERSTATE_DEV_DIR=dev.folder, EVERSTATE_TOKEN=token)
    done = cli(
        "operation", "apply", row["id"], "--reason", "second", "--wait", "--json", env=env
    ).ok().json()  # fmt: skip
    assert (done["state"], done["seconded_by"]) == ("done", "second")
    refused = cli("policy", "set", "hold", "--no-second-person", env=env)
    assert refused.code == 4
    assert dev.cli("operation", "undo", row["id"], "--reason", "mine").code == 4
    cli("operation", "undo", row["id"], "--reason", "clean", "--wait", env=env).ok()
    dev.cli("policy", "set", "hold", "--no-second-person").ok()


def test_an_undo_that_undid_nothing_is_exit_4_and_can_be_asked_for_again(dev: Dev) -> None:
    chosen = ("--entity", f"file/{TOP}", "--reason", "r", "--wait", "--json")
    held = dev.cli("hold", "add", *chosen).ok().json()
    released = dev.cli("hold", "release", *chosen).ok().json()
    undo = ("operation", "undo", held["id"], "--reason", "r", "--wait")
    nothing = dev.cli(*undo)
    assert (nothing.code, "none of 1 could be undone" in nothing.sentence()) == (4, True)
    assert f"everstate operation undo {held['id']}" in nothing.out
    dev.cli("operation", "undo", released["id"], "--reason", "r", "--wait").ok()
    assert "hold: UNDONE" in dev.cli(*undo).ok().out
    assert dev.cli("hold", "list", "--json").ok().out == ""


def test_settings_of_a_type_are_set_one_by_one(dev: Dev) -> None:
    dev.cli("entity-type", "set", "cart", "--snapshot-every", "100").ok()
    row = dev.cli("entity-type", "set", "cart", "--keep-snapshots", "5", "--json").ok().json()
    assert (row["snapshot_every"], row["keep_snapshots"], row["version"]) == (100, 5, 2)
    assert dev.cli("entity-type", "set", "cart", "--keep-snapshots", "1").code == 2
    names = [row["name"] for row in dev.cli("entity-type", "list", "--json").ok().lines()]
    assert {"cart", "file", "policy"} <= set(names)


def test_errors_are_json_too(dev: Dev) -> None:
    said = dev.cli("operation", "plan", "hold", "--where", "colour:red", "--json")
    assert (said.code, said.out) == (2, "")
    error = json.loads(said.err)["error"]
    assert (error["code"], error["field"]) == ("INVALID_ARGUMENT", "where")
