"""`everstate admin` as a process: the first token, TLS, addresses, and that nothing leaks."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.tokens import digest_of, mint
from tests.support import LOOPBACK, Running, Said, clean_env, cli, start


def admin_token(url: str, *options: str) -> Said:
    env = clean_env(EVERSTATE_DATABASE_URL=url)
    return cli("admin", "--create-token", *options, env=env)


@pytest.fixture
def token(database_url: str) -> str:
    return admin_token(database_url, "first").ok().out.strip()


@pytest.fixture
def admin(database_url: str) -> Iterator[Running]:
    env = clean_env(EVERSTATE_DATABASE_URL=database_url, EVERSTATE_LOG_LEVEL="DEBUG")
    running = start("admin", "--port", "0", env=env)
    running.until("^admin ready")
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def url_of(admin: Running) -> str:
    return admin.until(r"^admin ready  (http://\S+)$")[1]


def get(url: str, token: str = "") -> tuple[int, Any]:
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_first_token_comes_from_who_has_the_database(
    admin: Running, database_url: str, token: str
) -> None:
    assert digest_of(token) is not None
    base = url_of(admin)
    assert get(f"{base}/healthz")[0] == 401
    assert get(f"{base}/healthz", token) == (200, b"ok\n")
    status, body = get(f"{base}/api/v1/tokens", token)
    assert status == 200
    row = json.loads(body)["rows"][0]
    assert (row["name"], row["role"], row["created_by"]) == (
        "first",
        "admin",
        "who has the database",
    )
    again = admin_token(database_url, "first")
    assert (again.code, again.out) == (4, "")
    assert "there is a valid token 'first' already" in again.sentence()
    assert admin_token(database_url, "x", "--role", "root").code == 2
    assert admin.end(signal.SIGTERM) == 0


def test_no_token_appears_in_the_log_the_metrics_or_the_list_of_processes(
    admin: Running, token: str
) -> None:
    base = url_of(admin)
    wrong = mint()
    assert get(f"{base}/api/v1/whoami", wrong)[0] == 401
    assert get(f"{base}/api/v1/whoami?token={token}", token)[0] == 200
    assert get(f"{base}/nosuch/{token}", token)[0] == 404
    _, metrics = get(f"{base}/metrics", token)
    arguments = b"".join(
        path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
    )
    assert admin.end(signal.SIGTERM) == 0
    for secret in (token, wrong):
        assert secret.encode() not in metrics
        assert secret not in admin.text
        assert secret.encode() not in arguments


def test_what_is_not_http_is_answered_with_a_problem(admin: Running) -> None:
    port = int(url_of(admin).rpartition(":")[2])
    with socket.create_connection((LOOPBACK, port), timeout=5) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        said = b"".join(iter(lambda: raw.recv(65536), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-content-type-options: nosniff" in head.lower()
    assert json.loads(body)["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_it_refuses_to_listen_beyond_this_machine_in_the_clear(host: str) -> None:
    said = cli("admin", "--host", host)
    assert said.code == 2
    assert "in the clear" in said.sentence()
    assert "--insecure" in said.sentence()


def test_a_busy_port_is_refused_in_a_sentence(database_url: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        env = clean_env(EVERSTATE_DATABASE_URL=database_url, EVERSTATE_ADMIN_PORT=port)
        said = cli("admin", env=env)
    assert said.code == 4
    assert f"cannot listen on 127.0.0.1:{port} (admin)" in said.sentence()


def test_it_says_what_is_wrong_with_its_database(empty_database_url: str) -> None:
    assert "EVERSTATE_DATABASE_URL is not set" in cli("admin").sentence()
    said = cli("admin", "--port", "0", env=clean_env(EVERSTATE_DATABASE_URL=empty_database_url))
    assert said.code == 4
    assert "everstate migrate" in said.sentence()


def test_with_a_certificate_it_speaks_tls(database_url: str, token: str, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    import ssl

    env = clean_env(
        EVERSTATE_DATABASE_URL=database_url, EVERSTATE_TLS_CERT=cert, EVERSTATE_TLS_KEY=key
    )
    running = start("admin", "--host", "0.0.0.0", "--port", "0", env=env)
    try:
        port = running.until(r"^admin ready  https://0\.0\.0\.0:(\d+)$")[1]
        request = urllib.request.Request(f"https://localhost:{port}/healthz")
        request.add_header("Authorization", f"Bearer {token}")
        context = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            assert response.read() == b"ok\n"
            assert "max-age" in response.headers["strict-transport-security"]
    finally:
        assert running.end(signal.SIGTERM) == 0
    del env["EVERSTATE_TLS_KEY"]
    assert "go together" in cli("admin", env=env).sentence()
    key.write_text("not a key")
    env["EVERSTATE_TLS_KEY"] = str(key)
    said = cli("admin", "--port", "0", env=env)
    assert said.code == 2
    assert re.search("EVERSTATE_TLS_(CERT|KEY)", said.sentence())
