"""The HTTP API against its own OpenAPI document: schemathesis makes requests that the document
permits and ones that it forbids, and looks whether the answers are what it promises.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from schemathesis import openapi
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from everstate import admin as wiring
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
KNOWN = {"projection": "repo", "table": "files", "name": "repo"}
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


def settings(token: str, url: str) -> dict[str, Any]:
    return {
        "base-url": url,
        "headers": {"Authorization": f"Bearer {token}"},
        "seed": 4,
        "workers": 1,
        "request-timeout": 10,
        "max-stream-events": 3,
        "continue-on-failure": True,
        "parameters": {f"path.{name}": value for name, value in KNOWN.items()},
        "operations": [waiting(path) for path in WAITING],
        "generation": {"deterministic": True, "database": "none", "max-examples": 12},
        "phases": {"stateful": {"enabled": False}},
        "checks": {"enabled": False} | {name: {"enabled": True} for name in CHECKS},
        "warnings": False,
    }


def found(url: str, token: str) -> tuple[int, list[str]]:
    """How many operations were tried, and what was wrong with them."""
    config = SchemathesisConfig.from_dict(settings(token, url))
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
    return len(tried), wrong


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
        began = time.monotonic()
        tried, wrong = await asyncio.to_thread(found, url, token)
    assert not wrong, "\n".join(wrong[:40])
    assert tried > 30
    assert time.monotonic() - began < 90
