"""CONTRACTS.md as far as it exists: names that other people's scripts rely on.

Adding is fine, so these tests ask for "at least"; renaming or changing a default is not.
JSON keys of commands are held by tests/acceptance/test_cli.py, against a running node.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import typer

from admin_ui import app as admin_app
from admin_ui import operation_shapes
from admin_ui.access import Route
from admin_ui.errors import problem
from admin_ui.services import AdminSettings as AppSettings
from everstate import control, lifecycle
from everstate.cli import EXIT_CODES, app
from everstate.commands import common, dev, operation_words
from everstate.settings import (
    AdminSettings,
    DatabaseChoice,
    NodeSettings,
    WorkerSettings,
    client_environment,
    is_loopback,
)
from everstate.transfer import _KEYS
from journal import model, preparation
from kernel import clock, errors
from kernel.errors import InvalidArgument
from operations.model import ItemState, State
from sidecar_api.client import Target
from sidecar_api.generated import journal_pb2 as pb
from sidecar_api.server import ServerSettings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "GRPC_PORT", "METRICS_PORT", "SCHEMA", "DATABASE_URL", "URL", "ADMIN_PORT", "ADMIN_URL",
        "TOKEN", "TOKEN_FILE",
    ):  # fmt: skip
        monkeypatch.delenv(f"EVERSTATE_{name}", raising=False)
    monkeypatch.setenv("EVERSTATE_DEV_DIR", str(tmp_path))


# -- ports and environment -----------------------------------------------------------------------


def test_a_node_listens_on_7400_and_7490_of_loopback() -> None:
    settings = NodeSettings()
    assert (settings.grpc_port, settings.metrics_port) == (7400, 7490)
    assert dev._DEFAULT_PORTS == {
        "EVERSTATE_GRPC_PORT": 7400,
        "EVERSTATE_METRICS_PORT": 7490,
        "EVERSTATE_ADMIN_PORT": 7480,
        "EVERSTATE_WORKER_METRICS_PORT": 7491,
    }
    assert (ServerSettings().host, ServerSettings().port) == ("127.0.0.1", 7400)
    assert options("serve")["--host"].default == "127.0.0.1"
    assert Target() == Target.parse("everstate://127.0.0.1:7400/default")
    assert Target.parse("everstate://127.0.0.1") == Target()
    assert Target.parse("everstate+tls://h:1/l") == Target("h", 1, "l", tls=True)


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        ("EVERSTATE_DATABASE_URL", "postgresql://u@h/d", "database_url"),
        ("EVERSTATE_SCHEMA", "other", "schema_name"),
        ("EVERSTATE_GRPC_PORT", "1234", "grpc_port"),
        ("EVERSTATE_METRICS_PORT", "1234", "metrics_port"),
    ],
)
def test_settings_come_from_these_variables(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert str(getattr(NodeSettings(), field)) == value


def test_the_schema_is_everstate_and_the_folder_of_dev_is_dot_everstate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from everstate.settings import dev_folder

    assert DatabaseChoice().schema_name == "everstate"
    monkeypatch.delenv("EVERSTATE_DEV_DIR")
    assert dev_folder() == Path(".everstate")


def test_the_cli_reads_the_file_of_dev_for_a_loopback_target_when_the_variable_is_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "everstate.env"
    file.write_text("EVERSTATE_URL='everstate://127.0.0.1:7499/default'\nOTHER=x\n")
    assert client_environment()["EVERSTATE_URL"] == "everstate://127.0.0.1:7499/default"
    assert "OTHER" not in client_environment()
    monkeypatch.setenv("EVERSTATE_URL", "everstate://other:1/l")
    assert client_environment()["EVERSTATE_URL"] == "everstate://other:1/l"
    monkeypatch.delenv("EVERSTATE_URL")
    file.write_text("EVERSTATE_URL='everstate://example.org:7400/default'\n")
    assert "EVERSTATE_URL" not in client_environment()


def test_the_admin_listens_on_7480_of_loopback_and_the_cli_looks_there() -> None:
    assert AdminSettings().admin_port == 7480
    assert options("admin")["--host"].default == "127.0.0.1"
    assert control.target() == control.Target("127.0.0.1", 7480)


def test_a_worker_has_its_metrics_on_7491_of_loopback_and_finds_user_code_by_a_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("EVERSTATE_WORKER_METRICS_PORT", raising=False)
    assert WorkerSettings().worker_metrics_port == 7491
    assert options("work")["--host"].default == "127.0.0.1"
    monkeypatch.setenv("EVERSTATE_WORKER_METRICS_PORT", "1234")
    monkeypatch.setenv("EVERSTATE_APP", "/some/everstate.toml")
    settings = WorkerSettings()
    assert (settings.worker_metrics_port, str(settings.app)) == (1234, "/some/everstate.toml")


def test_the_admin_s_address_and_token_come_from_these_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVERSTATE_ADMIN_PORT", "7555")
    assert control.target().url == "http://127.0.0.1:7555"
    monkeypatch.setenv("EVERSTATE_ADMIN_URL", "https://admin.example")
    assert control.target().url == "https://admin.example:443"
    secret = tmp_path / "token"
    secret.write_text("from-file\n")
    monkeypatch.setenv("EVERSTATE_TOKEN_FILE", str(secret))
    assert control.target().token == "from-file"
    monkeypatch.setenv("EVERSTATE_TOKEN", "from-variable")
    assert control.target().token == "from-variable"
    assert "from-variable" not in repr(control.target())
    assert control.target("http://[::1]:1").url == "http://[::1]:1"


def test_the_token_of_dev_goes_to_this_machine_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "everstate.env"
    file.write_text("EVERSTATE_ADMIN_URL='http://127.0.0.1:7499'\nEVERSTATE_TOKEN='est_x'\n")
    assert control.target() == control.Target("127.0.0.1", 7499, token="est_x")
    assert control.target("http://localhost:1").token == "est_x"
    for elsewhere in (
        "http://192.0.2.1:7480",
        "https://admin.example",
        "http://127.0.0.1.evil.example",
    ):
        assert control.target(elsewhere).token == ""
    monkeypatch.setenv("EVERSTATE_ADMIN_URL", "https://admin.example")
    assert control.target().token == ""
    monkeypatch.delenv("EVERSTATE_ADMIN_URL")
    file.write_text("EVERSTATE_ADMIN_URL='https://admin.example'\nEVERSTATE_TOKEN='est_x'\n")
    assert control.target() == control.Target("127.0.0.1", 7480, token="est_x")


@pytest.mark.parametrize(
    "url", ["ftp://h", "http://", "h:7480", "http://u:p@h", "http://h/x", "http://h:x"]
)
def test_an_admin_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="EVERSTATE_ADMIN_URL"):
        control.target(url)


def test_only_loopback_addresses_need_no_permission() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "", "*")))


# -- the command line ----------------------------------------------------------------------------


def commands() -> dict[str, typer.core.TyperCommand]:
    found: dict[str, typer.core.TyperCommand] = {}

    def walk(command: object, path: tuple[str, ...]) -> None:
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, (*path, name))
        if not hasattr(command, "commands"):
            found[" ".join(path)] = command  # type: ignore[assignment]

    walk(typer.main.get_command(app), ())
    return found


def options(command: str) -> dict[str, typer.core.TyperOption]:
    return {word: param for param in commands()[command].params for word in param.opts}  # type: ignore[misc]


CLIENT = {"--url", "--wait"}
SHOWN = CLIENT | {"--json"}
ENDED = SHOWN | {"id_", "--timeout"}
SELECTION = {"--entity", "--type", "--from", "--to", "--where", "--log"}


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("dev", {"--no-sample"}),
        ("serve", {"--host", "--insecure", "--migrate", "--grpc-port", "--metrics-port"}),
        ("admin", {"--host", "--insecure", "--port", "--create-token", "--role"}),
        ("token create", SHOWN | {"name", "--role", "--grant", "--days"}),
        ("token list", SHOWN | {"--limit"}),
        ("token revoke", SHOWN | {"name"}),
        ("projection list", SHOWN | {"--limit"}),
        ("projection show", SHOWN | {"name"}),
        ("projection parked", SHOWN | {"name", "--limit"}),
        ("projection pause", SHOWN | {"name", "--reason"}),
        ("projection resume", SHOWN | {"name"}),
        ("projection rebuild", SHOWN | {"name", "--auto-switch", "--follow"}),
        ("projection switch", SHOWN | {"name", "--version", "--build"}),
        ("projection rollback", SHOWN | {"name"}),
        ("projection replay", SHOWN | {"name", "--entity", "--type", "--from", "--to", "--reason"}),
        ("projection wait", SHOWN | {"name", "--position", "--timeout"}),
        ("operation plan", SHOWN | {"kind", *SELECTION, "--target", "--at", "--param", "--rate"}),
        ("operation apply", ENDED | {"--reason", "--digest", "--typed"}),
        ("operation undo", ENDED | {"--reason"}),
        ("operation watch", {"id_", "--timeout", "--json", "--url"}),
        ("operation pause", SHOWN | {"id_"}),
        ("operation resume", SHOWN | {"id_"}),
        ("operation cancel", SHOWN | {"id_"}),
        ("operation retry", SHOWN | {"id_"}),
        ("operation replan", SHOWN | {"id_"}),
        ("operation list", SHOWN | {"--state", "--kind", "--limit"}),
        ("operation show", SHOWN | {"id_", "--items", "--failures", "--limit"}),
        ("operation kinds", SHOWN),
        ("policy list", SHOWN),
        ("policy show", SHOWN | {"kind"}),
        (
            "policy set",
            SHOWN | {"kind", "--second-person", "--expires", "--max-drift", "--undo", "--typed"},
        ),
        ("hold list", SHOWN | {"--label", "--log", "--limit"}),
        ("hold add", (ENDED - {"id_"}) | SELECTION | {"--reason", "--label", "--typed"}),
        ("hold release", (ENDED - {"id_"}) | SELECTION | {"--reason", "--label", "--typed"}),
        ("entity-type list", SHOWN | {"--limit"}),
        ("entity-type show", SHOWN | {"name"}),
        (
            "entity-type set",
            SHOWN
            | {
                "name",
                "--full-replay",
                "--trust-snapshots",
                "--snapshot-type",
                "--snapshot-every",
                "--snapshot-age",
                "--keep-snapshots",
            },
        ),
        ("migrate", {"--sql", "--check"}),
        ("import", SHOWN | {"file", "--rate", "--skip-bad", "--log"}),
        ("export", CLIENT | {"file", "--entity", "--type", "--from", "--to", "--limit", "--log"}),
        ("log show", SHOWN | {"--log"}),
        ("log list", SHOWN),
        ("log create", SHOWN | {"name", "--chunk-size"}),
        ("log tail", SHOWN | {"--log", "--limit", "--follow"}),
        ("log verify", SHOWN | {"--log", "--from", "--to"}),
        ("log position-at", SHOWN | {"time", "--log"}),
        ("entity list", SHOWN | {"--type", "--prefix", "--limit", "--log"}),
        ("entity show", SHOWN | {"entity_type", "entity_id", "--limit", "--log"}),
        ("snapshot list", SHOWN | {"entity_type", "entity_id", "--limit", "--log"}),
        (
            "snapshot show",
            SHOWN | {"entity_type", "entity_id", "--sequence", "--at", "--payload", "--log"},
        ),
        (
            "snapshot save",
            SHOWN | {"--type", "--data", "--payload", "--sequence", "--replace", "--log"},
        ),
        ("snapshot delete", SHOWN | {"entity_type", "entity_id", "--sequence", "--log"}),
        ("group list", SHOWN | {"--limit"}),
        ("group show", SHOWN | {"name"}),
        ("group create", SHOWN | {"name", "--log", "--from", "--partitions", "--global-order"}),
        ("group delete", SHOWN | {"name"}),
        ("group parked", SHOWN | {"name", "--limit", "--entity", "--type"}),
        ("group replay", SHOWN | {"name", "--all", "--entity", "--type", "--rate", "--dry-run"}),
        ("group discard", SHOWN | {"name", "--all", "--entity", "--type", "--dry-run"}),
        ("group seek", SHOWN | {"name", "to"}),
        ("descriptor add", SHOWN | {"file", "--allow-breaking", "--check"}),
        ("descriptor list", SHOWN | {"--prefix", "--limit"}),
        (
            "entity append",
            SHOWN | {"entity_type", "entity_id", "--event-type", "--data", "--expect", "--log"},
        ),
    ],
)
def test_commands_have_these_arguments_and_options(command: str, flags: set[str]) -> None:
    assert flags <= options(command).keys()


ACTS = ("apply", "pause", "resume", "cancel", "undo", "retry", "replan")


def test_the_http_api_keeps_its_paths() -> None:
    app = admin_app.api(admin_app.services(cast(Any, None), AppSettings()))
    one = "/api/v1/projections/{name}"
    operation = "/api/v1/operations/{operation_id}"
    held = {
        "GET": {
            "/healthz", "/readyz", "/metrics", "/openapi.json", "/api/v1/whoami", "/api/v1/tokens",
            "/api/v1/members", "/api/v1/projections", one, f"{one}/builds", f"{one}/segments",
            f"{one}/parked", f"{one}/wait", "/api/v1/groups", "/api/v1/groups/{name}",
            "/api/v1/read/{projection}/{table}", "/api/v1/read/{projection}",
            "/api/v1/operation-kinds", "/api/v1/operations", operation, f"{operation}/items",
            f"{operation}/failures", f"{operation}/watch", "/api/v1/policies",
            "/api/v1/policies/{kind}", "/api/v1/entity-types", "/api/v1/entity-types/{name}",
            "/api/v1/holds", "/api/v1/entities", "/api/v1/snapshots",
        },
        "PUT": {"/api/v1/policies/{kind}", "/api/v1/entity-types/{name}"},
        "POST": {
            "/api/v1/operations", *(f"{operation}/{act}" for act in ACTS),
            "/api/v1/tokens", "/api/v1/tokens/{name}/revoke", f"{one}/pause", f"{one}/resume",
            f"{one}/rebuild", f"{one}/switch", f"{one}/rollback", f"{one}/replays",
        },
    }  # fmt: skip
    for method, paths in held.items():
        there = {r.path for r in app.routes if isinstance(r, Route) and method in r.methods}
        assert paths <= there
    open_in_dev = {r.path for r in app.routes if isinstance(r, Route) and r.access.open_in_dev}
    assert open_in_dev == {
        "/healthz", "/openapi.json", "/api/v1/read/{projection}",
        "/api/v1/read/{projection}/{table}",
    }  # fmt: skip
    read = (app.openapi_schema or {})["paths"]["/api/v1/read/{projection}/{table}"]["get"]
    limit = next(p["schema"] for p in read["parameters"] if p["name"] == "limit")
    assert (limit["default"], limit["minimum"], limit["maximum"]) == (100, 1, 10_000)
    assert {p["name"] for p in read["parameters"]} >= {"order", "next", "min_position", "format"}


def test_plans_and_operations_have_these_keys_and_states() -> None:
    assert set(operation_shapes.Operation.model_fields) >= {
        "id", "digest", "kind", "state", "entities", "items", "events", "bytes", "excluded",
        "samples", "consumers", "warnings", "confirmations", "undoable", "undo_seconds",
        "undo_until",
        "estimated_seconds", "sentence", "expires_at", "reason", "applied_by", "seconded_by",
        "progress", "selection", "parameters", "target", "log", "error", "waits",
    }  # fmt: skip
    assert set(operation_shapes.NewPlan.model_fields) >= {
        "kind", "log", "target", "selection", "parameters", "rate",
    }  # fmt: skip
    chosen = {f.alias or name for name, f in operation_shapes.Chosen.model_fields.items()}
    assert chosen >= {"entities", "types", "from", "to", "where"}
    assert set(operation_shapes.Applying.model_fields) >= {"digest", "reason", "typed", "confirmed"}
    assert set(get_args(operation_shapes.Wire)) == {state.value for state in State}
    words = {state.name.lower() for state in ItemState}
    assert set(get_args(operation_shapes.ItemWord)) == words


def test_a_waited_for_operation_ends_with_these_exit_codes() -> None:
    row: dict[str, Any] = {"id": "op-1", "error": None, "progress": {"done": 3, "undone": 1}}
    for state in ("done", "undone"):
        operation_words.judge(row | {"state": state})
    with pytest.raises(errors.Conflict, match="none of 3 could be undone"):
        operation_words.judge(row | {"state": "undone", "progress": {"done": 3, "undone": 0}})
    for state in ("failed", "review", "cancelled", "expired", "planned", "awaiting", "paused"):
        with pytest.raises(errors.Conflict) as refused:
            operation_words.judge(row | {"state": state})
        assert EXIT_CODES[type(refused.value)] == 4
    for kind in ("hold", "release"):
        idle = {"state": "done", "kind": kind, "items": 2, "progress": {"done": 0, "undone": 0}}
        with pytest.raises(errors.Conflict, match="of 2 entities none was"):
            operation_words.judge(row | idle)
    late = operation_words._late(row | {"state": "running"}, 1)
    assert EXIT_CODES[type(late)] == 6


def test_problems_have_these_members() -> None:
    said = problem(errors.InvalidArgument("limit", "is too large"))
    assert (said["code"], said["status"], said["field"]) == ("INVALID_ARGUMENT", 400, "limit")
    assert said.keys() == {"type", "title", "status", "code", "detail", "field", "hint"}


def test_lists_show_everything_unless_limited() -> None:
    for command in ("entity list", "entity show", "export", "token list", "projection list"):
        assert options(command)["--limit"].default is None


def test_import_and_export_lines_have_these_fields() -> None:
    assert {
        "entity_type", "entity_id", "type", "data", "payload_base64", "time", "event_id",
        "sequence", "metadata", "content_type",
    } <= _KEYS  # fmt: skip


def test_a_node_is_given_up_after_two_seconds() -> None:
    assert common.REACH_SECONDS == control.REACH_SECONDS == 2.0


def tree() -> set[type[errors.EverstateError]]:
    return {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.EverstateError)
    }


def test_every_error_has_an_exit_code_of_the_contract() -> None:
    assert EXIT_CODES.keys() == tree()
    assert set(EXIT_CODES.values()) == {1, 2, 3, 4, 5, 6, 130}
    assert lifecycle.INTERRUPTED == 130


@pytest.mark.parametrize(
    ("kind", "code", "exit_code"),
    [
        (errors.CorruptLog, "CORRUPT_LOG", 1),
        (errors.InvalidArgument, "INVALID_ARGUMENT", 2),
        (errors.TooLarge, "TOO_LARGE", 2),
        (errors.OutOfRange, "OUT_OF_RANGE", 2),
        (errors.ConfigurationError, "CONFIGURATION", 2),
        (errors.NotFound, "NOT_FOUND", 3),
        (errors.LogNotFound, "LOG_NOT_FOUND", 3),
        (errors.EntityNotFound, "ENTITY_NOT_FOUND", 3),
        (errors.AlreadyExists, "ALREADY_EXISTS", 4),
        (errors.LogExists, "LOG_EXISTS", 4),
        (errors.WrongExpectedState, "WRONG_EXPECTED_STATE", 4),
        (errors.EntityDeleted, "ENTITY_DELETED", 4),
        (errors.Compacted, "COMPACTED", 4),
        (errors.ForeignEvents, "FOREIGN_EVENTS", 4),
        (errors.AppendIdReused, "APPEND_ID_REUSED", 4),
        (errors.ClockSkew, "CLOCK_SKEW", 4),
        (errors.SchemaMismatch, "SCHEMA_MISMATCH", 4),
        (errors.UnsafeServer, "UNSAFE_SERVER", 4),
        (errors.UnsupportedServer, "UNSUPPORTED_SERVER", 4),
        (errors.AddressInUse, "ADDRESS_IN_USE", 4),
        (errors.FolderInUse, "FOLDER_IN_USE", 4),
        (errors.Overloaded, "OVERLOADED", 5),
        (errors.Unavailable, "UNAVAILABLE", 5),
        (errors.OutcomeUnknown, "OUTCOME_UNKNOWN", 5),
        (errors.DeadlineExceeded, "DEADLINE_EXCEEDED", 6),
        (errors.Cancelled, "CANCELLED", 130),
        (errors.UnknownType, "UNKNOWN_TYPE", 3),
        (errors.Undecodable, "UNDECODABLE", 4),
    ],
)
def test_errors_keep_their_code_and_exit_code(
    kind: type[errors.EverstateError], code: str, exit_code: int
) -> None:
    assert (kind.code, EXIT_CODES[kind]) == (code, exit_code)


def test_dev_ends_with_the_same_codes_as_other_commands() -> None:
    assert all(EXIT_CODES[kind] == code for kind, code in dev._EXIT_CODES)


# -- formats and limits --------------------------------------------------------------------------


def test_the_limits_are_these_and_are_discoverable() -> None:
    assert dataclasses.asdict(model.Limits()) == {
        "entity_type_chars": 255,
        "event_type_chars": 255,
        "entity_id_chars": 512,
        "metadata_bytes": 16 * 1024,
        "event_bytes": 1_000_000,
        "append_events": 1_000,
        "append_bytes": 4_000_000,
        "message_bytes": 8_000_000,
    }
    fields = {field.name for field in pb.Limits.DESCRIPTOR.fields}
    assert fields == {field.name for field in dataclasses.fields(model.Limits)}


def test_content_types_are_these() -> None:
    assert (model.JSON, model.OCTET_STREAM) == ("application/json", "application/octet-stream")
    assert model.NewEvent("E", b"").content_type == "application/octet-stream"


def test_names_of_logs() -> None:
    for name in ("a", "a0_", "x" * 40):
        assert preparation.check_log_name(name) == name
    for name in ("A", "0a", "_a", "a-b", "x" * 41, "ä", "a\n"):
        with pytest.raises(InvalidArgument):
            preparation.check_log_name(name)
    assert (model.DEFAULT_LOG, model.SYSTEM_LOG) == ("default", "_system")


def test_times_are_rfc_3339_in_utc_with_microseconds_and_naive_ones_are_refused() -> None:
    assert clock.format_us(1_583_601_008_000_001) == "2020-03-07T17:10:08.000001Z"
    assert clock.parse_us("t", "2020-03-07T18:10:08.000001+01:00") == 1_583_601_008_000_001
    with pytest.raises(InvalidArgument):
        clock.parse_us("t", "2020-03-07T17:10:08")


def test_int64_is_a_number_and_ids_are_lower_case_uuid7() -> None:
    from kernel.ids import new_id

    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", new_id()
    )
    kinds = {field.name: field.type for field in pb.Event.DESCRIPTOR.fields}
    int64 = pb.Event.DESCRIPTOR.fields_by_name["position"].TYPE_INT64
    assert all(kinds[name] == int64 for name in ("position", "sequence", "recorded_at_us"))


def test_the_service_and_its_calls_keep_their_names() -> None:
    service = pb.DESCRIPTOR.services_by_name["JournalService"]
    assert service.full_name == "everstate.journal.v1.JournalService"
    assert {
        "Append", "AppendStream", "LoadEntity", "ReadLog", "GetEntity", "ListEntities", "GetLog",
        "ListLogs", "CreateLog", "GetPositionAt", "VerifyLog", "GetServerInfo",
    } <= {method.name for method in service.methods}  # fmt: skip
