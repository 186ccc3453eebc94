"""Servers and migrations that refuse to start: one sentence, a code, no traceback, no secret."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from everstate.commands.database import upgrade
from kernel.devdb import DevDatabase
from tests.support import (
    LOOPBACK,
    Node,
    clean_env,
    cli,
    make_database,
)


@pytest.fixture(scope="module")
def node(postgres18: SimpleNamespace) -> Iterator[Node]:
    url = make_database(postgres18, "refusals")
    upgrade(url, "everstate")
    with Node(url) as running:
        yield running


def refused(code: int, *arguments: str, **env: str | int) -> str:
    """The sentence with which a command refuses."""
    said = cli(*arguments, env=clean_env(**env))
    assert said.code == code, said.err
    assert said.out == ""
    return said.sentence()


def test_serve_refuses_a_busy_port(node: Node) -> None:
    for option, name in (("--grpc-port", "gRPC"), ("--metrics-port", "metrics")):
        with socket.create_server((LOOPBACK, 0)) as taken:
            port = str(taken.getsockname()[1])
            options = {"--grpc-port": "0", "--metrics-port": "0"} | {option: port}
            words = [word for pair in options.items() for word in pair]
            sentence = refused(4, "serve", *words, EVERSTATE_DATABASE_URL=node.database_url)
        assert sentence.startswith(f"cannot listen on {LOOPBACK}:{port} ({name}): ")


SECRET = "s3cret-word"


@pytest.mark.parametrize(
    ("url", "code", "sentence"),
    [
        (f"mysql://u:{SECRET}@h/d", 2, "begins with postgresql://"),
        (f"host=h password={SECRET}", 2, "begins with postgresql://"),
        (f"postgresql://u:{SECRET}@h:port/d", 2, "not a URL"),
        (f"postgresql://u:{SECRET}/x@h/d", 2, "not a URL"),
        ("postgresql://u:1234/x@h/d", 2, "write / ? # @ in a name or password as"),
        ("postgresql://u:1234#x@h/d", 2, "write / ? # @ in a name or password as"),
        (f"postgresql://u:{SECRET}@h/d?sslmode=x", 2, "sslmode"),
        (f"postgresql://u:{SECRET}@127.0.0.1:1/d", 5, "127.0.0.1:1 cannot be reached"),
        (f"postgresql://u:{SECRET}@no-host.invalid/d", 5, "no-host.invalid cannot be reached"),
    ],
)
def test_a_wrong_database_url_is_refused_without_its_password(
    url: str, code: int, sentence: str
) -> None:
    env: dict[str, str | int] = {
        "EVERSTATE_DATABASE_URL": url, "EVERSTATE_GRPC_PORT": 0, "EVERSTATE_METRICS_PORT": 0,
    }  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        for said in pool.map(lambda command: refused(code, command, **env), ("serve", "migrate")):
            assert sentence in said
            assert not any(part in said for part in (SECRET, "s3cret", "1234"))


def test_an_unset_database_url_is_refused() -> None:
    for command in ("serve", "migrate"):
        assert refused(2, command).startswith("EVERSTATE_DATABASE_URL is not set")


def test_serve_beyond_loopback_is_refused_before_anything_else() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        assert refused(2, "serve", "--host", host).startswith(f"--host {host}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVERSTATE_GRPC_PORT", "seven"),
        ("EVERSTATE_GRPC_PORT", "65536"),
        ("EVERSTATE_SCHEMA", "Not A Name"),
        ("EVERSTATE_BATCH_EVENTS", "0"),
        ("EVERSTATE_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: str) -> None:
    env = {"EVERSTATE_DATABASE_URL": f"postgresql://u:{SECRET}@h/d", name: value}
    sentence = refused(2, "serve", **env)
    assert sentence.startswith(f"{name}: ")
    assert SECRET not in sentence


def test_serve_refuses_a_database_without_our_schema_and_one_with_a_newer(
    postgres18: SimpleNamespace,
) -> None:
    url = make_database(postgres18, "cli_schema")
    env: dict[str, str | int] = {
        "EVERSTATE_DATABASE_URL": url, "EVERSTATE_GRPC_PORT": 0, "EVERSTATE_METRICS_PORT": 0,
    }  # fmt: skip
    assert refused(4, "serve", **env).startswith("the database has no schema 'everstate'")
    check = cli("migrate", "--check", env=clean_env(**env))
    assert (check.code, check.out) == (
        1, "schema 'everstate': not there, this program needs 0003\n",
    )  # fmt: skip
    upgrade(url, "everstate")
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE everstate.alembic_version SET version_num = '9999'")
    for command in ("serve", "migrate"):
        assert "newer (9999) than this program" in refused(4, command, **env)
    assert cli("migrate", "--check", env=clean_env(**env)).code == 1
    missing = url.replace("cli_schema", "no_such_database")
    for command in ("serve", "migrate"):
        assert "has no database 'no_such_database'" in refused(
            2, command, **(env | {"EVERSTATE_DATABASE_URL": missing})
        )


def test_serve_refuses_a_server_that_may_lose_events_and_a_wrong_password(tmp_path: Path) -> None:
    with DevDatabase(tmp_path / "pg", settings={"fsync": "off"}) as server:
        upgrade(server.dsn(), "everstate")
        env: dict[str, str | int] = {
            "EVERSTATE_DATABASE_URL": server.dsn(),
            "EVERSTATE_GRPC_PORT": 0,
            "EVERSTATE_METRICS_PORT": 0,
        }
        assert refused(4, "serve", **env) == "the database server has fsync off"

        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
            hba = server.data_dir / "pg_hba.conf"
            hba.write_text("local all locked scram-sha-256\n" + hba.read_text())
            connection.execute("SELECT pg_reload_conf()")
        url = server.dsn().replace("everstate@", f"locked:{SECRET}@")
        for command in ("serve", "migrate"):
            sentence = refused(2, command, **(env | {"EVERSTATE_DATABASE_URL": url}))
            assert "refuses the user name or password" in sentence
            assert SECRET not in sentence
