"""The commands that speak HTTP, beside a running `everstate dev`, and when nobody answers."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.tokens import digest_of
from tests.support import LOOPBACK, Dev, clean_env, cli, eventually, ports


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    running = Dev(tmp_path_factory.mktemp("dev") / "folder")
    running.start()
    yield running
    running.close()


def variables(dev: Dev) -> dict[str, str]:
    lines = (dev.folder / "everstate.env").read_text().splitlines()
    return {n: v.strip("'") for n, _, v in (line.partition("=") for line in lines) if v}


def test_beside_dev_the_commands_need_neither_address_nor_token(dev: Dev) -> None:
    made = dev.cli("token", "create", "ci", "--role", "operator", "--days", "3").ok()
    assert digest_of(made.out.strip()) is not None
    assert "operator token ci, valid until" in made.err
    rows = dev.cli("token", "list", "--json").ok().lines()
    assert [(row["name"], row["state"], row["created_by"]) for row in rows] == [
        ("ci", "valid", "everstate dev")
    ]
    assert dev.cli("token", "list").ok().out.startswith("valid    operator         ci  until ")
    again = dev.cli("token", "create", "ci", "--json")
    assert (again.code, again.error()["code"]) == (4, "ALREADY_EXISTS")
    assert dev.cli("token", "revoke", "ci").ok().out == "revoked ci\n"
    assert dev.cli("token", "revoke", "nosuch").code == 3
    assert "there is no token 'nosuch'" in dev.cli("token", "revoke", "nosuch").sentence()


def test_a_wrong_option_is_named_with_its_field(dev: Dev) -> None:
    said = dev.cli("token", "create", "x", "--role", "root", "--json")
    assert (said.code, said.error()["field"]) == (2, "role")
    assert said.error()["hint"]


def test_a_token_of_ones_own_wins_and_its_role_counts(dev: Dev) -> None:
    viewer = dev.cli("token", "create", "looker").ok().out.strip()
    env = clean_env(EVERSTATE_DEV_DIR=dev.folder, EVERSTATE_TOKEN=viewer)
    said = cli("token", "list", env=env)
    assert said.code == 4
    assert "this needs the role admin; 'looker' has the role viewer" in said.sentence()
    bad = cli("token", "list", "--json", env=env | {"EVERSTATE_TOKEN": "est_nonsense"})
    assert (bad.code, bad.error()["code"]) == (4, "UNAUTHENTICATED")


def test_in_dev_health_needs_no_token_but_lists_do(dev: Dev) -> None:
    url = variables(dev)["EVERSTATE_ADMIN_URL"]
    with urllib.request.urlopen(f"{url}/healthz", timeout=5) as response:
        assert response.read() == b"ok\n"
    rebound = urllib.request.Request(f"{url}/healthz", headers={"Host": "evil.example"})
    for refused in (rebound, f"{url}/metrics", f"{url}/api/v1/members"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(refused, timeout=5)
        assert caught.value.code == 401
        caught.value.close()


def test_all_processes_of_dev_are_members(dev: Dev) -> None:
    known = variables(dev)
    request = urllib.request.Request(f"{known['EVERSTATE_ADMIN_URL']}/api/v1/members")
    request.add_header("Authorization", f"Bearer {known['EVERSTATE_TOKEN']}")

    def kinds() -> set[str]:
        with urllib.request.urlopen(request, timeout=5) as response:
            return {row["kind"] for row in json.load(response)["rows"] if row["alive"]}

    eventually(lambda: kinds() >= {"node", "worker", "admin"}, "all have announced themselves")


def test_the_token_of_dev_is_in_no_line_and_no_argument(dev: Dev) -> None:
    token = variables(dev)["EVERSTATE_TOKEN"]
    assert digest_of(token) is not None
    assert (dev.folder / "everstate.env").stat().st_mode & 0o777 == 0o600
    assert dev.running is not None
    assert token not in dev.running.text
    arguments = b"".join(
        path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
    )
    assert token.encode() not in arguments


def test_an_admin_that_is_not_there_is_unreachable_within_two_seconds() -> None:
    began = time.monotonic()
    said = cli("token", "list", "--json", "--url", f"http://{LOOPBACK}:{ports()[0]}")
    assert (said.code, said.error()["code"]) == (5, "UNAVAILABLE")
    assert time.monotonic() - began < 5
    assert "connection refused" in said.error()["message"].lower()


def test_an_admin_that_takes_the_connection_and_is_silent_is_unreachable() -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        url = f"http://{LOOPBACK}:{silent.getsockname()[1]}"
        said = cli("token", "list", "--json", "--url", url)
    assert (said.code, said.error()["code"]) == (5, "UNAVAILABLE")
    assert "does not answer" in said.error()["message"]


def test_with_wait_it_is_waited_for(dev: Dev) -> None:
    """A relay that opens late stands for an admin that starts late."""
    known = variables(dev)
    target = (LOOPBACK, int(known["EVERSTATE_ADMIN_URL"].rpartition(":")[2]))
    port = ports()[0]

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            sink.sendall(data)

    def relay() -> None:
        with socket.create_server((LOOPBACK, port)) as server:
            taken, _ = server.accept()
            with taken, socket.create_connection(target) as behind:
                threading.Thread(target=pump, args=(behind, taken), daemon=True).start()
                pump(taken, behind)

    late = threading.Timer(3.0, relay)
    late.start()
    env = clean_env(EVERSTATE_TOKEN=known["EVERSTATE_TOKEN"])
    said = cli("token", "list", "--wait", "20", "--url", f"http://{LOOPBACK}:{port}", env=env)
    assert said.code == 0, said.err
    late.join()


@pytest.mark.parametrize("reply", [
    b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi",
    b"HTTP/1.1 302 Found\r\nlocation: http://evil.example/\r\ncontent-length: 0\r\n\r\n",
])  # fmt: skip
def test_something_else_at_the_address_is_named_and_not_followed(reply: bytes) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply.replace(b"\r\n\r\nhi", b"\r\n\r\n"))
                connection.recv(65536)
                connection.sendall(reply)
                connection.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        said = cli("token", "list", "--url", f"http://{LOOPBACK}:{server.getsockname()[1]}")
        thread.join(5)
    assert said.code == 2
    assert "is not an Everstate admin" in said.sentence()


def test_a_token_in_the_clear_beyond_this_machine_is_warned_of() -> None:
    env = clean_env(EVERSTATE_TOKEN="est_x")
    said = cli("token", "list", "--url", "http://192.0.2.1:7480", env=env)
    assert said.err.startswith("warning: the token travels unencrypted to 192.0.2.1")
    assert "est_x" not in said.err
