"""The admin's HTTP API: who may call what, and what holds for every answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fastapi.routing import APIRoute

from admin_ui import app as admin_app
from admin_ui import errors as http_errors
from admin_ui.access import Route
from admin_ui.guard import SECURITY_HEADERS, Guard, Limits
from admin_ui.services import AdminSettings
from kernel import telemetry
from kernel.database import Database
from kernel.errors import InvalidArgument, Unauthenticated
from kernel.principals import PAYLOAD, Role
from kernel.token_store import Tokens
from kernel.tokens import digest_of, mint
from tests.asgi import Answer, Asgi

SETTINGS = AdminSettings(version="1.2.3")


@pytest.fixture
def tokens(database: Database) -> Tokens:
    return Tokens(database)


def the_app(database: Database, settings: AdminSettings = SETTINGS) -> Asgi:
    return Asgi(admin_app.application(admin_app.services(database, settings)))


async def token_of(tokens: Tokens, role: Role, *grants: str) -> str:
    token, _ = await tokens.create(
        f"the-{role.word}-{len(grants)}", role, by="test", grants=frozenset(grants)
    )
    return token


@pytest.fixture
async def http(database: Database, tokens: Tokens) -> Asgi:
    """The application in production, asked by an administrator."""
    app = the_app(database)
    app.token = await token_of(tokens, Role.ADMIN)
    return app


def api(database: Database, settings: AdminSettings = SETTINGS) -> list[APIRoute]:
    app = admin_app.api(admin_app.services(database, settings))
    assert all(isinstance(route, Route) for route in app.routes), app.routes
    return [route for route in app.routes if isinstance(route, Route)]


def path_of(route: APIRoute) -> str:
    return route.path.replace("{", "").replace("}", "")


# -- who may call what ---------------------------------------------------------------------------


async def test_every_route_has_a_principal_and_refuses_nobody_s_requests(
    database: Database,
) -> None:
    app = the_app(database)
    routes = api(database)
    assert len(routes) >= 8
    for route in routes:
        for method in route.methods:
            answer = await app(method, path_of(route))
            answer.problem(401, "UNAUTHENTICATED")
            assert answer.headers["www-authenticate"] == 'Bearer realm="everstate"'


async def test_a_route_that_does_not_say_who_may_call_it_stops_the_application(
    database: Database,
) -> None:
    app = admin_app.api(admin_app.services(database, SETTINGS))

    async def anybody() -> str:
        return "hello"

    with pytest.raises(KeyError, match="access"):
        app.get("/anybody")(anybody)


async def test_every_route_refuses_a_role_that_is_too_low(
    database: Database, tokens: Tokens
) -> None:
    app = the_app(database)
    held = {role: await token_of(tokens, role) for role in Role}
    refused = 0
    for route in api(database):
        assert isinstance(route, Route)
        for role in Role:
            answer = await app.with_token(held[role])(min(route.methods), path_of(route))
            if role < route.access.role:
                answer.problem(403, "PERMISSION_DENIED")
                refused += 1
            else:
                assert answer.status not in (401, 403), (route.path, answer.body)
    assert refused > 4


async def test_in_dev_a_few_calls_from_this_machine_need_no_token(database: Database) -> None:
    dev = the_app(database, replace(SETTINGS, dev=True))
    for host in ("127.0.0.1:7480", "localhost:7480", "[::1]:7480", "localhost", "127.8.8.8:1"):
        assert (await dev.get("/healthz", host=host)).status == 200
        assert (await dev.get("/openapi.json", host=host)).status == 200
    assert (await dev("HEAD", "/healthz")).status == 200
    for path in ("/metrics", "/readyz", "/api/v1/whoami", "/api/v1/tokens"):
        (await dev.get(path)).problem(401, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    ("host", "peer", "headers"),
    [
        ("evil.example:7480", "127.0.0.1", {}),  # its name was rebound to 127.0.0.1
        ("127.0.0.1.evil.example", "127.0.0.1", {}),
        ("localhost.evil.example", "127.0.0.1", {}),
        ("user@127.0.0.1@evil.example", "127.0.0.1", {}),
        ("", "127.0.0.1", {}),
        (None, "127.0.0.1", {}),
        ("[", "127.0.0.1", {}),
        ("127.0.0.1:7480", "192.0.2.7", {}),
        ("127.0.0.1:7480", "192.0.2.7", {"x-forwarded-for": "127.0.0.1"}),
        ("127.0.0.1:7480", "127.0.0.1", {"origin": "https://evil.example"}),
        ("127.0.0.1:7480", "127.0.0.1", {"origin": "null"}),
        ("127.0.0.1:7480", "127.0.0.1", {"sec-fetch-site": "cross-site"}),
        ("127.0.0.1:7480", "127.0.0.1", {"host": "evil.example"}),  # two of them
        ("127.0.0.1:7480", "127.0.0.1", {"authorization": "Basic YTpi"}),
        ("127.0.0.1:7480", "127.0.0.1", {"authorization": "Bearer "}),
        ("127.0.0.1:7480", "127.0.0.1", {"authorization": f"Bearer {mint()}"}),
    ],
)
async def test_in_dev_web_pages_and_other_machines_do_need_a_token(
    database: Database, host: str | None, peer: str, headers: dict[str, str]
) -> None:
    dev = Asgi(the_app(database, replace(SETTINGS, dev=True)).app, peer=peer)
    answer = await dev.get("/healthz", host=host, headers=headers)
    answer.problem(401, "UNAUTHENTICATED")


async def test_the_token_of_dev_is_known_in_dev_only(database: Database) -> None:
    token = mint()
    dev = the_app(database, replace(SETTINGS, dev=True, dev_token=token)).with_token(token)
    assert (await dev.get("/api/v1/whoami")).ok() == {
        "kind": "dev", "name": "everstate dev", "role": "admin", "grants": ["payload"],
    }  # fmt: skip
    (await the_app(database).with_token(token).get("/healthz")).problem(401, "UNAUTHENTICATED")


# -- tokens --------------------------------------------------------------------------------------


async def test_a_token_is_made_used_listed_and_revoked(http: Asgi) -> None:
    made = (await http.post("/api/v1/tokens", {"name": "ci", "role": "operator", "days": 7})).ok()
    token = made.pop("token")
    assert made["state"] == "valid"
    assert made["created_by"] == "the-admin-0"
    ci = http.with_token(token)
    assert (await ci.get("/api/v1/whoami")).ok()["role"] == "operator"
    rows = (await http.get("/api/v1/tokens")).ok()["rows"]
    assert [row["name"] for row in rows] == ["the-admin-0", "ci"]
    assert rows[1]["last_used_at"].endswith("Z")
    ended = (await http.post("/api/v1/tokens/ci/revoke")).ok()
    assert (ended["state"], ended["revoked_by"]) == ("revoked", "the-admin-0")
    said = (await ci.get("/api/v1/whoami")).problem(401, "UNAUTHENTICATED")
    assert "'ci' has been revoked" in said["detail"]
    again = (await http.post(f"/api/v1/tokens/{ended['id']}/revoke")).ok()
    assert again["revoked_at"] == ended["revoked_at"]


async def test_an_expired_token_is_refused_and_its_name_is_free_again(
    http: Asgi, tokens: Tokens, database: Database
) -> None:
    token, view = await tokens.create("short", Role.VIEWER, by="test", days=1)
    assert (await tokens.authenticate(token)).name == "short"
    statement = (
        "UPDATE everstate.tokens SET expires_at = now() - interval '1 second' WHERE name = $1"
    )
    await database.fetchrow(statement, "short")
    with pytest.raises(Unauthenticated, match="'short' has expired"):
        await tokens.authenticate(token)
    said = (await http.with_token(token).get("/healthz")).problem(401, "UNAUTHENTICATED")
    assert "has expired" in said["detail"]
    _, other = await tokens.create("short", Role.VIEWER, by="test")
    assert other.token_id != view.token_id


async def test_two_valid_tokens_never_have_one_name(http: Asgi) -> None:
    asked = [http.post("/api/v1/tokens", {"name": "x", "role": "viewer"}) for _ in range(5)]
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409, 409]
    next(a for a in answers if a.status == 409).problem(409, "ALREADY_EXISTS")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "viewer"}, "name"),
        ({"name": "", "role": "viewer"}, "name"),
        ({"name": "a b", "role": "viewer"}, "name"),
        ({"name": "-x", "role": "viewer"}, "name"),
        ({"name": "x" * 81, "role": "viewer"}, "name"),
        ({"name": 7, "role": "viewer"}, "name"),
        ({"name": "x", "role": "root"}, "role"),
        ({"name": "x", "role": "viewer", "days": 0}, "days"),
        ({"name": "x", "role": "viewer", "days": 3661}, "days"),
        ({"name": "x", "role": "viewer", "grants": ["all"]}, "grants"),
        ({"name": "x", "role": "viewer", "colour": "red"}, "colour"),
        ([], "body"),
    ],
)
async def test_a_wrong_token_request_names_the_field_and_leaves_nothing(
    http: Asgi, body: object, field: str
) -> None:
    said = (await http.post("/api/v1/tokens", body)).problem(400, "INVALID_ARGUMENT")
    assert said["field"] == field
    assert len((await http.get("/api/v1/tokens")).ok()["rows"]) == 1


async def test_nobody_hands_out_a_grant_they_have_not(http: Asgi, tokens: Tokens) -> None:
    wanted = {"name": "x", "role": "viewer", "grants": [PAYLOAD]}
    (await http.post("/api/v1/tokens", wanted)).problem(403, "PERMISSION_DENIED")
    granted = http.with_token(await token_of(tokens, Role.ADMIN, PAYLOAD))
    assert (await granted.post("/api/v1/tokens", wanted)).ok()["grants"] == [PAYLOAD]


async def test_the_database_holds_only_the_hash_of_a_token(http: Asgi, database: Database) -> None:
    key = {"idempotency-key": "make-it"}
    made = (await http.post("/api/v1/tokens", {"name": "ci", "role": "viewer"}, headers=key)).ok()
    token = made["token"]
    rows = await database.fetch("SELECT t::text FROM everstate.tokens t")
    rows += await database.fetch("SELECT r::text, body FROM everstate.request_results r")
    everything = " ".join(str(value) for row in rows for value in row.values())
    digest = digest_of(token)
    assert digest is not None
    assert digest.hex() in everything
    assert token not in everything
    assert token[4:47] not in everything


async def test_the_list_of_tokens_is_paged(http: Asgi) -> None:
    names = ["the-admin-0", *(f"t{i}" for i in range(7))]
    for name in names[1:]:
        (await http.post("/api/v1/tokens", {"name": name, "role": "viewer"})).ok()
    found: list[str] = []
    query: dict[str, object] = {"limit": 3}
    pages = 0
    while True:
        page = (await http.get("/api/v1/tokens", query)).ok()
        found += [row["name"] for row in page["rows"]]
        pages += 1
        if page["next"] is None:
            break
        query["next"] = page["next"]
    assert (found, pages) == (names, 3)
    (await http.get("/api/v1/tokens", {"limit": 0})).problem(400, "INVALID_ARGUMENT")
    (await http.get("/api/v1/tokens", {"limit": 1001})).problem(400, "INVALID_ARGUMENT")


# -- idempotency keys ----------------------------------------------------------------------------


async def test_a_post_that_is_sent_again_with_its_key_acts_once(http: Asgi) -> None:
    body = {"name": "ci", "role": "viewer"}
    key = {"idempotency-key": "k1"}
    first = await http.post("/api/v1/tokens", body, headers=key)
    again = await http.post("/api/v1/tokens", body, headers=key)
    assert (first.status, again.status) == (201, 201)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json() | {"token": None}
    assert len((await http.get("/api/v1/tokens")).ok()["rows"]) == 2


async def test_many_at_once_with_one_key_act_once(http: Asgi) -> None:
    body = {"name": "ci", "role": "viewer"}
    asked = [http.post("/api/v1/tokens", body, headers={"idempotency-key": "k"}) for _ in range(6)]
    answers = await asyncio.gather(*asked)
    acted = [a for a in answers if a.status == 201 and a.json()["token"]]
    assert len(acted) == 1
    for answer in answers:
        if answer.status != 201:
            answer.problem(503, "UNAVAILABLE")
            assert answer.headers["retry-after"] == "1"


async def test_a_key_is_of_one_request_of_one_principal(http: Asgi, tokens: Tokens) -> None:
    key = {"idempotency-key": "k"}
    (await http.post("/api/v1/tokens", {"name": "a", "role": "viewer"}, headers=key)).ok()
    other = await http.post("/api/v1/tokens", {"name": "b", "role": "viewer"}, headers=key)
    assert "another request" in other.problem(409, "CONFLICT")["detail"]
    somebody = http.with_token(await token_of(tokens, Role.ADMIN, PAYLOAD))
    (await somebody.post("/api/v1/tokens", {"name": "b", "role": "viewer"}, headers=key)).ok()
    for bad in ("", "a b", "x" * 201, "é"):
        said = await http.post("/api/v1/tokens", {}, headers={"idempotency-key": bad})
        assert said.problem(400, "INVALID_ARGUMENT")["field"] == "Idempotency-Key"


async def test_a_refused_post_may_be_sent_again_with_its_key(http: Asgi) -> None:
    key = {"idempotency-key": "k"}
    body = {"name": "ci", "role": "viewer"}
    (await http.post("/api/v1/tokens", body)).ok()
    (await http.post("/api/v1/tokens", body, headers=key)).problem(409, "ALREADY_EXISTS")
    (await http.post("/api/v1/tokens/ci/revoke")).ok()
    assert (await http.post("/api/v1/tokens", body, headers=key)).ok()["token"]


async def test_a_claim_that_a_killed_process_left_lapses(http: Asgi, database: Database) -> None:
    key = {"idempotency-key": "k"}
    body = {"name": "ci", "role": "viewer"}
    (await http.post("/api/v1/tokens", body, headers=key)).ok()
    (await http.post("/api/v1/tokens/ci/revoke")).ok()
    unfinished = "UPDATE everstate.request_results SET status = NULL, body = NULL"
    await database.fetchrow(unfinished)
    (await http.post("/api/v1/tokens", body, headers=key)).problem(503, "UNAVAILABLE")
    await database.fetchrow("UPDATE everstate.request_results SET locked_until = now()")
    assert (await http.post("/api/v1/tokens", body, headers=key)).ok()["token"]


async def test_old_answers_are_forgotten(http: Asgi, database: Database) -> None:
    body = {"name": "ci", "role": "viewer"}
    (await http.post("/api/v1/tokens", body, headers={"idempotency-key": "k"})).ok()
    await database.fetchrow(
        "UPDATE everstate.request_results SET began_at = now() - interval '25 hours'"
    )
    (await http.post("/api/v1/tokens/ci/revoke", headers={"idempotency-key": "k2"})).ok()
    rows = await database.fetch("SELECT key FROM everstate.request_results")
    assert [row["key"] for row in rows] == ["k2"]


# -- every answer --------------------------------------------------------------------------------


async def answers(http: Asgi) -> list[Answer]:
    return [
        await http.get("/healthz"),
        await http.get("/api/v1/tokens"),
        await http.get("/nosuch"),
        await http.with_token("").get("/healthz"),
        await http.post("/healthz"),
        await http("DELETE", "/api/v1/tokens"),
        await http("OPTIONS", "/api/v1/tokens"),
        await http("HEAD", "/api/v1/tokens"),
        await http.post("/api/v1/tokens", {}),
        await http("POST", "/api/v1/tokens", body=b"{" * 2_000_000),
        await http.get("/healthz", {"x": "y" * 20_000}),
    ]


async def test_every_answer_has_the_security_headers(http: Asgi) -> None:
    given = await answers(http)
    assert {a.status for a in given} == {200, 400, 401, 404, 405, 413}
    for answer in given:
        for name, value in SECURITY_HEADERS:
            assert answer.headers[name.decode()] == value.decode()
        names = [name for name, _ in answer.raw_headers]
        assert len(names) == len(set(names))
        assert "server" not in answer.headers
        assert not any(name.startswith("access-control") for name in answer.headers)


async def test_every_error_is_a_problem(http: Asgi) -> None:
    for answer in await answers(http):
        if answer.status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["hint"]
    said = await http("DELETE", "/api/v1/tokens")
    assert set(said.headers["allow"].replace(" ", "").split(",")) >= {"GET", "HEAD"}


async def test_head_is_answered_wherever_get_is_without_a_body(
    http: Asgi, database: Database
) -> None:
    for route in api(database):
        if "GET" in route.methods:
            whole = await http.get(path_of(route))
            head = await http("HEAD", path_of(route))
            assert (head.status, head.body) == (whole.status, b""), route.path
            assert head.headers["content-type"] == whole.headers["content-type"]


async def test_a_body_without_a_stated_size_is_bounded_too(http: Asgi) -> None:
    endless = [b"x" * 100_000] * 11
    said = (await http("POST", "/api/v1/tokens", body=endless)).problem(413, "TOO_LARGE")
    assert "the limit is 1000000" in said["detail"]
    lied = await http("POST", "/api/v1/tokens", headers={"content-length": "nan"}, body=[b"{}"])
    lied.problem(400, "INVALID_ARGUMENT")


async def test_a_body_that_does_not_arrive_is_given_up(http: Asgi) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await receive()  # type: ignore[operator]

    slow = Asgi(Guard(app, Limits(body_seconds=0.05), tls=False))
    (await slow("POST", "/x", body=[])).problem(504, "DEADLINE_EXCEEDED")


async def test_more_requests_than_permitted_are_told_to_come_back() -> None:
    release = asyncio.Event()

    async def app(scope: object, receive: object, send: object) -> None:
        await release.wait()
        raise InvalidArgument("x", "released")

    http = Asgi(Guard(app, Limits(requests=2), tls=False))
    waiting = [asyncio.create_task(http.get("/")) for _ in range(2)]
    await asyncio.sleep(0)
    refused = await http.get("/")
    refused.problem(503, "OVERLOADED")
    assert refused.headers["retry-after"] == "1"
    release.set()
    for answer in await asyncio.gather(*waiting):
        answer.problem(400, "INVALID_ARGUMENT")
    (await http.get("/")).problem(400, "INVALID_ARGUMENT")


async def test_what_nobody_foresaw_is_a_problem_and_shows_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = f"hush-{7}f3a"  # a traceback shows the lines of our code

    async def app(scope: object, receive: object, send: object) -> None:
        raise RuntimeError(secret)

    answer = await Asgi(Guard(app, tls=True)).get("/")
    answer.problem(500, "INTERNAL")
    assert b"hush-7f3a" not in answer.body
    assert "max-age" in answer.headers["strict-transport-security"]
    said = capsys.readouterr()
    assert "RuntimeError" in said.out + said.err
    assert "hush-7f3a" not in said.out + said.err


async def test_the_document_names_every_route_its_problems_and_keys(
    http: Asgi, database: Database
) -> None:
    document = (await http.get("/openapi.json")).ok()
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == "1.2.3"
    assert document["security"] == [{"token": []}]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for route in api(database):
        for method in route.methods:
            operation = document["paths"][route.path][method.lower()]
            assert operation["description"], route.path
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            names = {p["name"] for p in operation.get("parameters", ())}
            assert ("Idempotency-Key" in names) == (method == "POST")


async def test_the_metrics_count_requests_by_route_and_hold_no_token(http: Asgi) -> None:
    await http.get("/api/v1/tokens")
    await http.post(f"/api/v1/tokens/{http.token}/revoke")
    answer = await http.get("/metrics")
    text = answer.body.decode()
    assert 'everstate_http_requests_total{call="list_tokens",status="200"}' in text
    assert 'call="revoke_token",status="404"' in text
    assert http.token not in text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert telemetry.http_requests._labelnames == ("call", "status")


def test_the_statuses_are_those_of_errors() -> None:
    assert set(http_errors.STATUSES.values()) <= {
        400, 401, 403, 404, 409, 410, 413, 422, 499, 500, 502, 503, 504,
    }  # fmt: skip
