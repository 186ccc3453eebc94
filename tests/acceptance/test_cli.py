"""Every command of the CLI against a running node: what it prints, and the code it ends with."""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psycopg
import pytest

from everstate.commands.database import upgrade
from sidecar_api.generated import journal_pb2 as pb
from tests.support import (
    LOOPBACK,
    SAMPLE,
    Node,
    Said,
    cli,
    make_database,
    ports,
    without_recorded_at,
)

LOG_KEYS = {
    "log", "head", "first", "chunk_size", "chunks", "chunks_ahead", "bytes_total", "entities",
    "recorded_at",
}  # fmt: skip
ENTITY_KEYS = {
    "entity_type", "entity_id", "sequence", "floor", "state", "event_count", "first_position",
    "last_position", "slice", "snapshot_sequence",
}  # fmt: skip
EVENT_KEYS = {
    "entity_type", "entity_id", "type", "sequence", "event_id", "content_type", "data", "position",
    "recorded_at",
}  # fmt: skip
VERIFY_KEYS = {
    "log", "ok", "from_position", "to_position", "events", "removed", "entities", "holes",
    "findings", "findings_total",
}  # fmt: skip
IMPORT_KEYS = {"events", "entities", "appended", "duplicates", "skipped", "last_position"}

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture(scope="module")
def node(postgres18: SimpleNamespace) -> Iterator[Node]:
    url = make_database(postgres18, "cli")
    upgrade(url, "everstate")
    with Node(url) as running:
        running.cli("entity", "append", "cart", "c/1", "--event-type=Added", "--data={}").ok()
        running.cli("entity", "append", "cart/c/1", "--event-type=Left", "--data=[1]").ok()
        yield running


def lines_of(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def row(entity_id: str, data: object = 1, **more: object) -> dict[str, Any]:
    return {"entity_type": "t", "entity_id": entity_id, "type": "E", "data": data} | more


# In SQL, as each command costs half a second.
def new_log(node: Node) -> str:
    name = f"l{uuid.uuid4().hex[:12]}"
    with psycopg.connect(node.database_url) as connection:
        connection.execute("SELECT everstate.create_log_v1(%s, 4194304)", [name])
    return name


def head_of(node: Node, log: str) -> int:
    with psycopg.connect(node.database_url) as connection:
        found = connection.execute(
            "SELECT max(last_position) FROM everstate.batches JOIN everstate.logs USING (log_id)"
            " WHERE name = %s",
            [log],
        ).fetchone()
    assert found is not None
    return found[0]


# -- what commands print -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("log show", LOG_KEYS),
        ("log list", LOG_KEYS),
        ("log verify", VERIFY_KEYS),
        ("log tail --limit 1", EVENT_KEYS),
        ("log position-at 2020-01-01T00:00:00Z", {"log", "position", "head"}),
        ("entity list", ENTITY_KEYS),
        ("entity show cart/c/1", ENTITY_KEYS | {"events"}),
        (
            "entity append cart other --event-type E --data 1",
            {"entity_type", "entity_id", "sequence", "position", "duplicate"},
        ),
        ("import -", IMPORT_KEYS),
    ],
)
def test_json_has_exactly_these_keys(node: Node, command: str, keys: set[str]) -> None:
    said = node.cli(*command.split(), "--json").ok()
    assert said.err == ""
    rows = said.lines()
    assert rows
    assert all(line.keys() == keys for line in rows)


def test_log_list_has_both_logs_and_create_adds_one(node: Node) -> None:
    name = f"made_{uuid.uuid4().hex[:8]}"
    made = node.cli("log", "create", name, "--chunk-size", "64", "--json").ok().json()
    assert made.keys() == LOG_KEYS
    assert (made["log"], made["chunk_size"], made["head"], made["recorded_at"]) == (
        name, 64, 0, None,
    )  # fmt: skip
    listed = [line["log"] for line in node.cli("log", "list", "--json").ok().lines()]
    assert listed == sorted(listed)
    assert {"_system", "default", name} <= set(listed)
    assert node.cli("log", "verify", "--log", name).ok().out == (
        "ok: 0 events at positions 1..0, 0 entities, no hole\n"
    )


def test_an_entity_is_shown_to_people_and_to_programs(node: Node) -> None:
    said = node.cli("entity", "show", "cart", "c/1").ok()
    head, first, second = said.out.splitlines()
    assert re.fullmatch(r"cart/c/1: sequence 2, 2 events, readable from 1, active, slice \d+", head)
    assert re.fullmatch(r"     1  \S+Z  Added  \{\}", first)
    assert re.fullmatch(r"     2  \S+Z  Left  \[1\]", second)
    shown = node.cli("entity", "show", "cart/c/1", "--json").ok().json()
    assert (shown["entity_id"], shown["sequence"], shown["floor"], shown["state"]) == (
        "c/1", 2, 1, "active",
    )  # fmt: skip
    assert [event["data"] for event in shown["events"]] == [{}, [1]]
    assert all(TIME.fullmatch(event["recorded_at"]) for event in shown["events"])
    assert node.cli("entity", "show", "cart/c/1", "--limit", "1").ok().out.count("\n") == 2


def test_logs_are_shown_to_people(node: Node) -> None:
    assert re.fullmatch(
        r"default: \d+ events of \d+ entities, newest \S+Z; readable from 1; \d+ bytes of payload; "
        r"\d+ chunks of 4194304, 2 ahead\n",
        node.cli("log", "show").ok().out,
    )
    tail = node.cli("log", "tail", "--limit", "2").ok().out.splitlines()
    assert len(tail) == 2
    assert int(tail[0].split()[0]) + 1 == int(tail[1].split()[0]), "oldest first"
    assert node.cli("log", "position-at", "2020-01-01T00:00:00Z").ok().out == "1\n"
    head = head_of(node, "default")
    future = node.cli("log", "position-at", "2099-01-01T00:00:00Z", "--json").ok().json()
    assert future == {"log": "default", "position": head + 1, "head": head}


def test_an_append_from_a_file_states_what_it_expects_and_is_recognised_when_repeated(
    node: Node, tmp_path: Path
) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"\x00\xff")
    event_id = str(uuid.uuid4())
    command = [
        *("entity", "append", "blob", "b1", "--event-type=Stored", "--expect=none", "--json"),
        *("--payload", payload, "--event-id", event_id, "--metadata", '{"k":"v"}'),
    ]
    first = node.cli(*command).ok().json()
    again = node.cli(*command).ok().json()
    assert (first["sequence"], first["duplicate"]) == (1, False)
    assert again == first | {"duplicate": True}
    (event,) = node.cli("entity", "show", "blob/b1", "--json").ok().json()["events"]
    assert base64.b64decode(event["payload_base64"]) == b"\x00\xff"
    assert (event["metadata"], event["content_type"]) == (
        {"k": "v"}, "application/octet-stream",
    )  # fmt: skip


def test_lists_page_through_everything_unless_limited(node: Node) -> None:
    log = new_log(node)
    rows = [row(f"{n:05}") for n in range(2_100)]
    node.cli("import", "-", "--log", log, stdin=lines_of(*rows)).ok()
    listed = node.cli("entity", "list", "--log", log, "--json").ok().lines()
    assert [line["entity_id"] for line in listed] == [r["entity_id"] for r in rows]
    limited = node.cli("entity", "list", "t", "--log", log, "--limit", "1001").ok().out
    assert len(limited.splitlines()) == 1001
    prefixed = node.cli("entity", "list", "--type", "t", "--prefix", "0209", "--log", log).ok()
    assert len(prefixed.out.splitlines()) == 10
    exported = node.cli("export", "--log", log, "--limit", "1500").ok().lines()
    assert [line["position"] for line in exported] == list(range(1, 1501))


# -- export and import ---------------------------------------------------------------------------

EXOTIC = (
    row("plain", {"ü": [1, None, 1.5]}, time="2020-03-07T17:10:08+02:00"),
    row(
        "rich", "x", metadata={"deep": {"er": 1}}, correlation_id="c", causation_id="d",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", subject="s",
        schema_version=3, event_id="0193a2e0-7c2e-7c3a-9d7e-2f1a5b6c7d8e",
    ),
    {"entity_type": "t", "entity_id": "bytes", "type": "E", "payload_base64": "AP8="},
    {
        "entity_type": "t", "entity_id": "odd json", "type": "E",
        "content_type": "application/json", "payload_base64": "eyAic3BhY2VkIiA6MX0=",
    },
    {"entity_type": "t", "entity_id": "empty", "type": "E", "payload_base64": ""},
    row("numbered", 1, sequence=5),
    row("numbered", 2, sequence=6),
    row("slash/ed é", 1),
)  # fmt: skip


def test_an_export_imported_into_another_log_gives_equal_events(node: Node, tmp_path: Path) -> None:
    one, two = new_log(node), new_log(node)
    node.cli("import", "-", "--log", one, stdin=lines_of(*EXOTIC)).ok()
    first, second = tmp_path / "1.jsonl.gz", tmp_path / "2.jsonl"
    node.cli("export", first, "--log", one).ok()
    node.cli("import", first, "--log", two).ok()
    node.cli("export", second, "--log", two).ok()
    assert without_recorded_at(first) == without_recorded_at(second)
    assert not first.with_name("1.jsonl.gz.part").exists()
    events = [json.loads(line) for line in second.read_text().splitlines()]
    assert [e["sequence"] for e in events] == [1, 1, 1, 1, 1, 5, 6, 1]
    assert events[0]["time"] == "2020-03-07T15:10:08.000000Z"
    assert events[1].items() >= {k: v for k, v in EXOTIC[1].items() if k != "data"}.items()
    # The same events give the same bytes, compressed too; an import of it adds nothing.
    other = tmp_path / "3.jsonl.gz"
    node.cli("export", other, "--log", one).ok()
    assert other.read_bytes() == first.read_bytes()
    again = node.cli("import", first, "--log", two, "--json").ok().json()
    assert (again["appended"], again["duplicates"]) == (0, len(EXOTIC))
    assert node.cli("log", "verify", "--log", two).ok()


def test_an_export_is_a_selection_by_entity_type_position_and_time(node: Node) -> None:
    log = new_log(node)
    node.cli(
        "import", "-", "--log", log,
        stdin=lines_of(row("a"), row("b"), row("a"), row("c", entity_type="u")),
    ).ok()  # fmt: skip

    def positions(*options: str) -> list[int]:
        said = node.cli("export", "--log", log, *options).ok()
        return [line["position"] for line in said.lines()]

    assert positions("--entity", "t/a") == [1, 3]
    assert positions("--type", "u") == [4]
    assert positions("--from", "2", "--to", "3") == [2, 3]
    assert positions("--to", "2020-01-01T00:00:00Z") == []
    assert positions("--from", "2099-01-01T00:00:00Z") == []
    assert positions("--from", "2020-01-01T00:00:00Z", "--to", "2099-01-01T00:00:00Z") == [
        1, 2, 3, 4,
    ]  # fmt: skip
    newest = node.cli("log", "show", "--log", log, "--json").ok().json()["recorded_at"]
    assert positions("--from", newest, "--to", newest) == [1, 2, 3, 4], "both ends are included"
    assert node.cli("log", "verify", "--log", log, "--to", "2020-01-01T00:00:00Z").code == 2


# -- broken imports ------------------------------------------------------------------------------

BROKEN = [
    (b"{", "is not JSON"),
    (b"[]", "is not a JSON object"),
    (lines_of(row("a", bogus=1)).strip(), "bogus: is not a field of import lines"),
    (lines_of(row("")).strip(), "entity_id: is empty"),
    (lines_of(row("a\n")).strip(), "entity_id: has control characters"),
    (lines_of(row("x" * 513)).strip(), "entity_id: has 513 characters, the limit is 512"),
    (lines_of(row("a", type=7)).strip(), "type: is not a text"),
    (lines_of(row("a", time="2020-01-01T00:00:00")).strip(), "has no UTC offset"),
    (lines_of(row("a", payload_base64="AA==")).strip(), "give either data or payload_base64"),
    (b'{"entity_type":"t","entity_id":"a","type":"E","payload_base64":"?"}', "is not base64"),
    (lines_of(row("a", metadata=[])).strip(), "metadata: is not a JSON object"),
    (lines_of(row("a", event_id="X")).strip(), "event_id: is not a UUID"),
    (lines_of(row("good", sequence=7)).strip(), "sequence: 7 does not follow"),
    (b'{"entity_type":"\xff"}', "is not JSON"),
]


@pytest.fixture(scope="module")
def import_log(node: Node) -> str:
    return new_log(node)


@pytest.mark.parametrize(("bad", "reason"), BROKEN)
def test_a_bad_line_is_named_with_its_reason_and_nothing_of_the_file_is_imported(
    node: Node, import_log: str, tmp_path: Path, bad: bytes, reason: str
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(lines_of(row("good", sequence=1)) + b"\n" + bad + b"\n" + lines_of(row("z")))
    said = node.cli("import", file, "--log", import_log)
    assert said.code == 2
    assert said.out == ""
    sentence = said.sentence()
    assert sentence.startswith("line 3: ")
    assert reason in sentence
    assert head_of(node, import_log) == 0


def test_a_pipe_stops_at_the_bad_line_and_says_what_is_in(node: Node) -> None:
    log = new_log(node)
    data = lines_of(*(row(f"{n}") for n in range(700))) + b"oops\n" + lines_of(row("later"))
    said = node.cli("import", "-", "--log", log, "--json", stdin=data)
    assert said.code == 2
    error = said.error()
    assert error["field"] == "line 701"
    assert error["message"].startswith("line 701: line: is not JSON")
    assert error["message"].endswith("the 700 events before it are in")
    assert head_of(node, log) == 700
    # The bad line mended, the same pipe again brings the rest.
    mended = data.replace(b"oops\n", b"")
    again = node.cli("import", "-", "--log", log, "--json", stdin=mended).ok().json()
    assert (again["events"], again["appended"], again["duplicates"]) == (701, 1, 700)


def test_bad_lines_can_be_set_aside(node: Node, tmp_path: Path) -> None:
    log = new_log(node)
    file, aside = tmp_path / "in.jsonl", tmp_path / "bad.jsonl"
    file.write_bytes(lines_of(row("a")) + b"oops\n[]\n" + lines_of(row("b"), row("a")))
    said = node.cli("import", file, "--log", log, "--skip-bad", aside).ok()
    assert said.out == f"3 events of 2 entities are in; 2 bad lines in {aside}\n"
    assert aside.read_bytes() == b"oops\n[]\n"
    assert head_of(node, log) == 3


def test_a_file_cut_off_in_its_compression_imports_nothing(node: Node, tmp_path: Path) -> None:
    log = new_log(node)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(SAMPLE.read_bytes()[:30_000])
    said = node.cli("import", cut, "--log", log)
    assert said.code == 2
    assert re.match(r"line \d+: the file cannot be read on: ", said.sentence())
    not_gz = tmp_path / "not.jsonl.gz"
    not_gz.write_bytes(lines_of(row("a")))
    said = node.cli("import", not_gz, "--log", log)
    assert said.code == 2
    assert "cannot be read on" in said.sentence()
    assert head_of(node, log) == 0


def test_an_entity_with_foreign_events_is_refused(node: Node, tmp_path: Path) -> None:
    log = new_log(node)
    node.cli("entity", "append", "t/a", "--event-type=X", "--data=0", "--log", log).ok()
    file = tmp_path / "in.jsonl.gz"
    file.write_bytes(gzip.compress(lines_of(row("a"), row("b"))))
    said = node.cli("import", file, "--log", log)
    assert said.code == 4
    assert said.sentence() == "t/a: its event 1 is not that of line 1"
    assert head_of(node, log) == 1
    # Numbers of its own that do not go on where the entity stands.
    said = node.cli("import", "-", "--log", log, stdin=lines_of(row("a", sequence=9)))
    assert said.code == 4
    assert said.sentence().startswith("t/a: the file goes on at sequence 9")


# -- exit codes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "name"),
    [
        ("entity append a b --event-type E --data 1 --expect x", 2, "INVALID_ARGUMENT"),
        ("entity append a b --event-type E --data {", 2, "INVALID_ARGUMENT"),
        ("entity append a b --data 1", 2, "INVALID_ARGUMENT"),
        ("entity append a b --event-type E", 2, "INVALID_ARGUMENT"),
        ("entity show a", 2, "INVALID_ARGUMENT"),
        ("log create UPPER", 2, "INVALID_ARGUMENT"),
        ("log create tiny --chunk-size 3", 2, "INVALID_ARGUMENT"),
        ("log position-at yesterday", 2, "INVALID_ARGUMENT"),
        ("log verify --from 999999", 2, "OUT_OF_RANGE"),
        ("log show --url http://127.0.0.1", 2, "CONFIGURATION"),
        ("log show --log nothing", 3, "LOG_NOT_FOUND"),
        ("entity show no/one", 3, "ENTITY_NOT_FOUND"),
        ("import /no/such/file", 3, "NOT_FOUND"),
        ("log create default", 4, "LOG_EXISTS"),
        ("entity append cart c/1 --event-type E --data 1 --expect 7", 4, "WRONG_EXPECTED_STATE"),
        ("entity append cart c/1 --event-type E --data 1 --expect none", 4, "WRONG_EXPECTED_STATE"),
        ("entity append no one --event-type E --data 1 --expect exists", 4, "WRONG_EXPECTED_STATE"),
    ],
)
def test_errors_have_their_exit_code_and_are_json_on_stderr(
    node: Node, command: str, code: int, name: str
) -> None:
    said = node.cli(*command.split(), "--json")
    error = said.error()
    assert (said.code, error["code"]) == (code, name)
    assert error.keys() == {"code", "message", "field", "hint"}
    assert error["message"]
    assert error["hint"]
    if name == "INVALID_ARGUMENT":
        assert error["field"]


@pytest.mark.parametrize(
    "command", ["nothing", "log show --nothing", "import", "import x --rate 0"]
)
def test_usage_errors_end_with_2(node: Node, command: str) -> None:
    said = node.cli(*command.split())
    assert said.code == 2
    assert said.out == ""
    assert "Error: " in said.err


def test_a_verification_that_finds_something_ends_with_1(node: Node) -> None:
    log = new_log(node)
    node.cli("import", "-", "--log", log, stdin=lines_of(*(row("a", n) for n in range(9)))).ok()
    with psycopg.connect(node.database_url) as connection:
        connection.execute(
            "DELETE FROM everstate.events WHERE position = 5 AND log_id ="
            " (SELECT log_id FROM everstate.logs WHERE name = %s)",
            [log],
        )
    said = node.cli("log", "verify", "--log", log, "--json")
    assert said.code == 1
    report = said.json()
    assert (report["ok"], report["holes"], report["events"]) == (False, 1, 8)
    assert "no event at positions 5..5" in report["findings"]
    said = node.cli("log", "verify", "--log", log)
    assert said.code == 1
    assert said.out.splitlines()[-1].startswith("NOT ok: ")
    assert "finding: no event at positions 5..5" in said.out.splitlines()


class Fake:
    """A node that answers as it is told."""

    def __init__(self, port: int = 0, code: grpc.StatusCode | None = None) -> None:
        self._code = code
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port(f"{LOOPBACK}:{port}")
        self._server.start()

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]

        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if name == "GetServerInfo":
                return pb.ServerInfo(version="fake").SerializeToString()
            if self._code is not None:
                context.abort(self._code, "as it was told")
            return pb.Log(log="default", head=7).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)

    def close(self) -> None:
        self._server.stop(None).wait()


@pytest.mark.parametrize(
    ("status", "code"),
    [(grpc.StatusCode.DEADLINE_EXCEEDED, 6), (grpc.StatusCode.UNAVAILABLE, 5)],
)
def test_a_deadline_ends_with_6_and_a_node_that_goes_away_with_5(
    status: grpc.StatusCode, code: int
) -> None:
    fake = Fake(code=status)
    try:
        said = cli("log", "show", "--json", "--url", f"everstate://{LOOPBACK}:{fake.port}")
    finally:
        fake.close()
    assert said.code == code
    assert said.error()["code"] == status.name


def test_an_unreachable_node_is_given_up_within_two_seconds() -> None:
    began = time.monotonic()
    said = cli("log", "show", "--json", "--url", f"everstate://{LOOPBACK}:{ports()[0]}")
    took = time.monotonic() - began
    assert said.code == 5
    assert said.error()["code"] == "UNAVAILABLE"
    assert took < 4, "two seconds and the start of a Python"


def test_a_node_that_accepts_and_never_answers_is_unreachable_too() -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        said = cli("log", "show", "--url", f"everstate://{LOOPBACK}:{port}")
        took = time.monotonic() - began
    assert said.code == 5
    assert said.sentence().startswith(f"the node at {LOOPBACK}:{port} cannot be reached")
    assert took < 4


def test_wait_waits_for_a_node_that_comes_later() -> None:
    port = ports()[0]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            cli, *f"log show --json --wait 20 --url everstate://{LOOPBACK}:{port}".split()
        )
        with pytest.raises(TimeoutError):  # without --wait it would have given up by then
            waiting.result(timeout=3.5)
        fake = Fake(port)
        try:
            said: Said = waiting.result()
        finally:
            fake.close()
    assert said.ok().json()["head"] == 7
