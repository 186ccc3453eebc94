"""Addresses, settings from the environment, connection errors as sentences without secrets."""

from __future__ import annotations

import ssl
from pathlib import Path

import asyncpg
import pytest

from everstate.settings import (
    client_environment,
    is_loopback,
    load_database_choice,
    load_node_settings,
)
from kernel.database import check_url, connect_error, mask, translate
from kernel.errors import (
    ConfigurationError,
    DeadlineExceeded,
    EverstateError,
    InternalError,
    InvalidArgument,
    OutcomeUnknown,
    SchemaMismatch,
    Unavailable,
)
from kernel.sql import check_schema_name, in_schema, load
from sidecar_api.client import Target

SECRET = "s3cret"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing of the caller's environment; an empty folder of `everstate dev`."""
    import os

    for name in [name for name in os.environ if name.startswith("EVERSTATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EVERSTATE_DEV_DIR", str(tmp_path))
    return tmp_path


# Targets


@pytest.mark.parametrize(
    ("url", "target", "address"),
    [
        ("everstate://host", Target("host", 7400, "default"), "host:7400"),
        ("everstate://host:1234", Target("host", 1234, "default"), "host:1234"),
        ("everstate://host/orders", Target("host", 7400, "orders"), "host:7400"),
        ("everstate://host:1/orders/", Target("host", 1, "orders"), "host:1"),
        ("everstate://[::1]:1/x", Target("::1", 1, "x"), "[::1]:1"),
        ("everstate://[::1]", Target("::1", 7400, "default"), "[::1]:7400"),
        ("everstate+tls://host/x", Target("host", 7400, "x", tls=True), "host:7400"),
        ("everstate://10.0.0.1:65535", Target("10.0.0.1", 65535), "10.0.0.1:65535"),
    ],
)
def test_a_target_is_read_from_its_url(url: str, target: Target, address: str) -> None:
    assert Target.parse(url) == target
    assert target.address == address


@pytest.mark.parametrize(
    "url",
    [
        "", "host", "host:7400", "http://host", "everstate:host", "everstate://", "everstate:///log",
        "everstate://:7400", "everstate://host:port", "everstate://host:65536", "everstate://[::1",
        "postgresql://host/db",
    ],
)  # fmt: skip
def test_what_is_no_target_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^EVERSTATE_URL: "):
        Target.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        f"everstate://user:{SECRET}@host/log",
        f"everstate://:{SECRET}@host",
        f"everstate://{SECRET}@host",
        f"everstate://host/log?token={SECRET}",
    ],
)
def test_a_secret_in_a_target_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Target.parse(url)
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_only_this_machines_own_addresses_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# Settings of clients


def test_a_client_finds_what_a_running_dev_wrote(bare: Path) -> None:
    (bare / "everstate.env").write_text(
        "# made by everstate dev\n"
        "EVERSTATE_URL='everstate://127.0.0.1:7411/default'\n"
        'EVERSTATE_TOKEN="abc"\n'
        "PATH=/nowhere\n"
        "nonsense\n"
    )
    found = client_environment()
    assert found["EVERSTATE_URL"] == "everstate://127.0.0.1:7411/default"
    assert found["EVERSTATE_TOKEN"] == "abc"
    assert "PATH" not in found


def test_the_environment_wins_over_the_file(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "everstate.env").write_text(
        "EVERSTATE_URL=everstate://[::1]:1/a\nEVERSTATE_TOKEN=file\n"
    )
    monkeypatch.setenv("EVERSTATE_URL", "everstate://elsewhere:2/b")
    found = client_environment()
    assert found["EVERSTATE_URL"] == "everstate://elsewhere:2/b"


@pytest.mark.parametrize(
    "url", ["everstate://example.com:7400/x", "everstate://0.0.0.0:1", "", "x"]
)
def test_a_file_that_points_elsewhere_is_not_believed(bare: Path, url: str) -> None:
    (bare / "everstate.env").write_text(f"EVERSTATE_URL={url}\nEVERSTATE_TOKEN={SECRET}\n")
    assert SECRET not in client_environment().values()
    assert "EVERSTATE_URL" not in client_environment()


def test_without_a_file_the_environment_is_all() -> None:
    assert set(client_environment()) == {"EVERSTATE_DEV_DIR"}


# Settings of processes


def test_settings_come_from_the_environment_and_arguments_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVERSTATE_GRPC_PORT", "7777")
    monkeypatch.setenv("EVERSTATE_METRICS_PORT", "7778")
    settings = load_node_settings(metrics_port=9, batch_events=None)
    assert (settings.grpc_port, settings.metrics_port, settings.batch_events) == (7777, 9, 1000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVERSTATE_GRPC_PORT", "x"),
        ("EVERSTATE_GRPC_PORT", "70000"),
        ("EVERSTATE_BATCH_EVENTS", "0"),
        ("EVERSTATE_LOG_LEVEL", "LOUD"),
        ("EVERSTATE_APPEND_CONNECTIONS", "3"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=rf"^{name}: "):
        load_node_settings()


def test_a_wrong_schema_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTATE_SCHEMA", "Drop; Table")
    monkeypatch.setenv("EVERSTATE_DATABASE_URL", "postgresql://host/db")
    for read in (load_node_settings, load_database_choice):
        with pytest.raises(ConfigurationError, match=r"^EVERSTATE_SCHEMA: "):
            read()


def test_a_missing_database_is_named() -> None:
    with pytest.raises(ConfigurationError, match="EVERSTATE_DATABASE_URL is not set"):
        load_database_choice()


# Connection strings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:s3cret@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://u:s3@cret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:s3/c@ret@h/d?x=1", "postgresql://u:***@h/d?x=1"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://h:5432/d?x=1", "postgresql://h:5432/d?x=1"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("postgresql://h/d?user=u&password=s3cret&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("host=h password=s3cret user=u", "host=h password=*** user=u"),
        ("postgresql://:s3cret@h/d", "postgresql://:***@h/d"),
    ],
)
def test_a_connection_string_is_shown_without_its_password(url: str, shown: str) -> None:
    assert mask(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "", "host", "mysql://h/d", f"mysql://u:{SECRET}@h/d", f"postgresql://u:{SECRET}@h:port/d",
        f"postgresql://u:{SECRET}@[::1/d", f"postgresql://u:a/{SECRET}@h/d", "postgresql://h/d?x",
        f"postgresql://u:a#{SECRET}@h/d",
    ],
)  # fmt: skip
def test_what_is_no_database_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^EVERSTATE_DATABASE_URL: ") as caught:
        check_url(url)
    assert SECRET not in caught.value.message


def state(kind: type[asyncpg.PostgresError]) -> asyncpg.PostgresError:
    return kind("the server's own words")


URL = f"postgresql://user:{SECRET}@db.example:5433/orders"


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (
            state(asyncpg.InvalidPasswordError),
            ConfigurationError,
            "the database at db.example:5433 refuses the user name or password",
        ),
        (
            state(asyncpg.InvalidAuthorizationSpecificationError),
            ConfigurationError,
            "the database at db.example:5433 refuses the user name or password",
        ),
        (
            state(asyncpg.InvalidCatalogNameError),
            ConfigurationError,
            "the database at db.example:5433 has no database 'orders'",
        ),
        (
            state(asyncpg.TooManyConnectionsError),
            Unavailable,
            "the database at db.example:5433 takes no connection now (SQLSTATE 53300)",
        ),
        (
            state(asyncpg.CannotConnectNowError),
            Unavailable,
            "the database at db.example:5433 takes no connection now (SQLSTATE 57P03)",
        ),
        (
            asyncpg.ClientConfigurationError("no such sslmode"),
            ConfigurationError,
            "EVERSTATE_DATABASE_URL: no such sslmode",
        ),
        (TimeoutError(), Unavailable, "the database at db.example:5433 does not answer"),
        (
            ConnectionRefusedError(111, "Connection refused"),
            Unavailable,
            "the database at db.example:5433 cannot be reached: Connection refused",
        ),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed"),
            Unavailable,
            "the database at db.example:5433 cannot be reached: connection refused",
        ),
        (
            FileNotFoundError(2, "No such file or directory"),
            Unavailable,
            "the database at db.example:5433 cannot be reached: No such file or directory",
        ),
        (
            asyncpg.InterfaceError("unexpected"),
            Unavailable,
            "the database at db.example:5433 cannot be used: unexpected",
        ),
    ],
)
def test_a_failed_connection_is_one_sentence(
    error: BaseException, kind: type[EverstateError], sentence: str
) -> None:
    said = connect_error(error, URL)
    assert type(said) is kind
    assert said is not None
    assert said.message == sentence
    assert SECRET not in said.message
    assert "\n" not in said.message


def test_a_failed_tls_handshake_says_so() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    said = connect_error(error, URL)
    assert isinstance(said, ConfigurationError)
    assert said.message == "the database at db.example:5433: TLS failed (CERTIFICATE_VERIFY_FAILED)"
    assert isinstance(connect_error(ssl.SSLError(1, "made by hand"), URL), ConfigurationError)


def test_the_socket_folder_stands_for_the_host() -> None:
    said = connect_error(TimeoutError(), "postgresql://u@/d?host=/run/postgresql")
    assert said is not None
    assert said.message == "the database at /run/postgresql does not answer"
    said = connect_error(TimeoutError(), "postgresql:///d")
    assert said is not None
    assert said.message == "the database at the default socket does not answer"


def test_an_error_of_ours_is_kept_and_a_bug_is_not_explained_away() -> None:
    ours = ConfigurationError("x")
    assert connect_error(ours, URL) is ours
    assert connect_error(ZeroDivisionError(), URL) is None


@pytest.mark.parametrize(
    ("error", "reading", "writing"),
    [
        (state(asyncpg.QueryCanceledError), DeadlineExceeded, DeadlineExceeded),
        (state(asyncpg.LockNotAvailableError), Unavailable, Unavailable),
        (state(asyncpg.DeadlockDetectedError), Unavailable, Unavailable),
        (state(asyncpg.DiskFullError), Unavailable, Unavailable),
        (state(asyncpg.AdminShutdownError), Unavailable, OutcomeUnknown),
        (state(asyncpg.CrashShutdownError), Unavailable, OutcomeUnknown),
        (state(asyncpg.ConnectionFailureError), Unavailable, OutcomeUnknown),
        (state(asyncpg.UndefinedTableError), SchemaMismatch, SchemaMismatch),
        (state(asyncpg.InsufficientPrivilegeError), ConfigurationError, ConfigurationError),
        (state(asyncpg.CharacterNotInRepertoireError), InvalidArgument, InvalidArgument),
        (state(asyncpg.DivisionByZeroError), InvalidArgument, InvalidArgument),
        (state(asyncpg.SyntaxOrAccessError), InternalError, InternalError),
        (TimeoutError(), DeadlineExceeded, OutcomeUnknown),
        (ConnectionResetError(), Unavailable, OutcomeUnknown),
        (asyncpg.InterfaceError("closed"), Unavailable, OutcomeUnknown),
        (ZeroDivisionError(), InternalError, InternalError),
    ],
)
def test_a_driver_error_becomes_one_of_the_tree_and_never_shows_its_words(
    error: BaseException, reading: type[EverstateError], writing: type[EverstateError]
) -> None:
    for kind, said in ((reading, translate(error)), (writing, translate(error, writing=True))):
        assert type(said) is kind
        assert "the server's own words" not in said.message


# SQL for another schema


def test_the_schema_stands_wherever_everstate_stood() -> None:
    text = (
        "CREATE SCHEMA everstate; CREATE SCHEMA IF NOT EXISTS everstate;\n"
        "SELECT everstate.f(x) FROM everstate.logs l -- everstate.logs\n"
        "WHERE x = 'everstate.events'::regclass AND my_everstate.y = 1"
    )
    assert in_schema(text, "everstate") == text
    assert in_schema(text, "other") == (
        "CREATE SCHEMA other; CREATE SCHEMA IF NOT EXISTS other;\n"
        "SELECT other.f(x) FROM other.logs l -- other.logs\n"
        "WHERE x = 'other.events'::regclass AND my_everstate.y = 1"
    )


def test_a_loaded_statement_has_no_header_and_the_right_schema() -> None:
    statement = load("journal", "head", "other")
    assert statement.startswith("SELECT")
    assert "other.batches" in statement
    assert "everstate." not in statement


@pytest.mark.parametrize("name", ["a", "_a", "a_1", "a" * 63])
def test_a_schema_name_is_a_plain_lower_case_name(name: str) -> None:
    assert check_schema_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "1a", "a-b", "a b", 'a"', "a;", "a" * 64, "é", "a\n"])
def test_another_schema_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^EVERSTATE_SCHEMA: "):
        check_schema_name(name)
