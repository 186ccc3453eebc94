"""The HTTP API against its own OpenAPI document: schemathesis makes requests that the document
permits and ones that it forbids, and looks whether the answers are what it promises.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from schemathesis import openapi
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from everstate import admin as wiring
from everstate.control import Control, Target
from everstate.settings import AdminSettings
from kernel.database import Database
from kernel.principals import PAYLOAD, Role
from kernel.token_store import Tokens
from tests.readmodels import make_read_model

FILES = """
CREATE TABLE files (path text PRIMARY KEY, size bigint NOT NULL, kind text, added numeric);
INSERT INTO files SELECT 'f' || i, i % 7, 'k' || i % 3, i * 0.125 FROM generate_series(0, 20) i
"""
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "response_headers_conformance", "negative_data_rejection",
    "missing_required_header", "ignored_auth", "unsupported_method",
)  # fmt: skip
KNOWN = {"projection": "repo", "table": "files", "name": "repo", "kind": "hold"}
"""Names of things that are there, for the path parameters."""


WAITING = ("/api/v1/projections/{name}/wait", "/api/v1/read/{projection}/{table}")


def waiting(path: str) -> dict[str, Any]:
    """Who asks to wait for what does not come is told so: 504 is the right answer."""
    permitted = ["2xx", "4xx", "504"]
    return {
        "include-path": path,
        "parameters": {"query.timeout": 0.01},
        "checks": {"not_a_server_error": {"expected-statuses": permitted}},
    }


REFUSALS = {
    # 413: a query longer than all parameters together may be; 412: not the version that was seen.
    "negative_data_rejection": [
        "400",
        "401",
        "403",
        "404",
        "405",
        "409",
        "410",
        "412",
        "413",
        "428",
    ],
    "missing_required_header": ["400", "401", "428"],
}


def settings(token: str, url: str, operation_id: str) -> dict[str, Any]:
    known = KNOWN | {"operation_id": operation_id}
    checks: dict[str, Any] = {name: {"enabled": True} for name in CHECKS}
    for name, statuses in REFUSALS.items():
        checks[name] |= {"expected-statuses": statuses}
    return {
        "base-url": url,
        "headers": {"Authorization": f"Bearer {token}"},
        "seed": 4,
        "workers": 1,
        "request-timeout": 10,
        "max-stream-events": 3,
        "continue-on-failure": True,
        "parameters": {f"path.{name}": value for name, value in known.items()},
        "operations": [waiting(path) for path in WAITING],
        "generation": {"deterministic": True, "database": "none", "max-examples": 8},
        "phases": {"stateful": {"enabled": False}},
        "checks": {"enabled": False} | checks,
        "warnings": False,
    }


def found(url: str, token: str, operation_id: str) -> tuple[set[str], list[str]]:
    """Which calls of the document were not tried, and what was wrong with the others."""
    config = SchemathesisConfig.from_dict(settings(token, url, operation_id))
    schema = openapi.from_url(
        f"{url}/openapi.json", config=config, headers={"Authorization": f"Bearer {token}"}
    )
    tried: set[str] = set()
    wrong: list[str] = []
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                tried.add(event.recorder.label)
                for case, checks in event.recorder.checks.items():
                    for check in checks:
                        if check.status == Status.FAILURE:
                            sent = event.recorder.interactions[case].request
                            wrong.append(
                                f"{event.recorder.label}: {check.name}: "
                                f"{check.failure_info.failure if check.failure_info else ''}\n"
                                f"  {sent.method} {sent.uri} {(sent.body or b'')[:200]!r}"
                            )
            case events.NonFatalError() | events.FatalError():
                wrong.append(str(event))
    named = {
        f"{method.upper()} {path}"
        for path, methods in schema.raw_schema["paths"].items()
        for method in methods
    }
    return named - tried, wrong


def cancelled(url: str, token: str) -> str:
    """An operation that has ended, so that watching it does."""
    admin = Control(Target("127.0.0.1", int(url.rpartition(":")[2]), token=token))
    with admin:
        row = admin.post("/api/v1/operations", {"kind": "hold"})
        made: str = admin.post(f"/api/v1/operations/{row['id']}/cancel")["id"]
    return made


@pytest.mark.timeout(240)
async def test_answers_are_what_the_openapi_document_says(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_read_model(database, "repo", FILES)
    token, _ = await Tokens(database).create("all", Role.ADMIN, by="t", grants=frozenset({PAYLOAD}))
    monkeypatch.setenv("EVERSTATE_DATABASE_URL", database_url)
    admin = AdminSettings(admin_port=0)
    async with wiring.admin(admin, "127.0.0.1") as running:
        url = f"http://127.0.0.1:{running.port}"
        operation_id = await asyncio.to_thread(cancelled, url, token)
        left_out, wrong = await asyncio.to_thread(found, url, token, operation_id)
    assert not wrong, "\n".join(wrong[:40])
    assert left_out <= {"GET /openapi.json"}, "that one was read to begin with"
