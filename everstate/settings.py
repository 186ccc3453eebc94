"""Settings of the processes, from the environment (``EVERSTATE_*``) and the command line.

The descriptions and defaults here are what docs/reference/settings.md shows.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from kernel.errors import ConfigurationError
from kernel.sql import DEFAULT_SCHEMA, check_schema_name

SCHEMA_REVISION = "0003"
"""The schema version this program needs; a test holds it equal to the newest migration."""


class DatabaseChoice(BaseSettings):
    """Which database: used by every process that opens it."""

    model_config = SettingsConfigDict(env_prefix="EVERSTATE_", extra="ignore")

    database_url: str = Field("", description="PostgreSQL 15–18: postgresql://user@host/database")
    # pydantic owns the attribute name `schema`.
    schema_name: str = Field(
        DEFAULT_SCHEMA, validation_alias="EVERSTATE_SCHEMA", description="Schema of all tables."
    )


class AdminSettings(DatabaseChoice):
    """The HTTP API and console (`everstate admin`)."""

    admin_port: int = Field(
        7480, ge=0, le=65535, description="HTTP port, metrics and health included; 0: any free one."
    )
    database_connections: int = Field(
        8, ge=2, le=200, description="Most connections to the database."
    )
    app: Path | None = Field(
        None,
        description="everstate.toml or pyproject.toml of your code (folds), or its folder; not set:"
        " here.",
    )
    admin_requests: int = Field(64, ge=1, description="Most requests at work at once.")
    read_seconds: float = Field(
        10.0, gt=0, le=60, description="Statements on read models end after this."
    )
    tls_cert: Path | None = Field(None, description="PEM file of the port's certificate chain.")
    tls_key: Path | None = Field(None, description="PEM file of its private key.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Log level.")
    log_json: bool = Field(True, description="Logs as JSON lines; else as text.")
    dev: bool = Field(
        False, description="Set by `everstate dev`: a few calls from this machine need no token."
    )


class WorkerSettings(DatabaseChoice):
    """A worker (`everstate work`)."""

    worker_metrics_port: int = Field(
        7491, ge=0, le=65535, description="Metrics and health port; 0: any free one."
    )
    app: Path | None = Field(
        None,
        description="everstate.toml or pyproject.toml of your code, or its folder; not set: here.",
    )
    database_connections: int = Field(
        8, ge=2, le=200, description="Most connections to the database."
    )
    lease_seconds: float = Field(
        10.0, ge=1, le=300, description="Within this a worker that was killed is replaced."
    )
    drain_seconds: float = Field(10.0, ge=0, description="How long a batch may finish at a stop.")
    operations: int = Field(
        2, ge=1, le=20, description="Operations that run in a worker at once; others wait."
    )
    operation_items_days: float = Field(
        7.0,
        ge=0,
        le=3650,
        description="How long the items of an operation that cannot be undone are kept.",
    )
    previous_hours: float = Field(
        24.0,
        ge=0,
        le=8760,
        description="How long the build that was live before is kept up to date, for a rollback.",
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Log level.")
    log_json: bool = Field(True, description="Logs as JSON lines; else as text.")
    dev: bool = Field(False, description="Set by `everstate dev`: unsafe servers only warn.")


class NodeSettings(DatabaseChoice):
    """A journal node (`everstate serve`)."""

    grpc_port: int = Field(7400, ge=0, le=65535, description="gRPC port; 0: any free one.")
    metrics_port: int = Field(
        7490, ge=0, le=65535, description="Metrics and health port; 0: any free one."
    )
    database_connections: int = Field(
        8, ge=2, le=200, description="Most connections to the database."
    )
    append_connections: int = Field(
        1,
        ge=1,
        le=2,
        description="Connections that commit; the second only when the queue is deep.",
    )
    batch_events: int = Field(1_000, ge=1, le=5_000, description="Most events in one commit.")
    queue_bytes: int = Field(
        48_000_000, ge=1_000_000, description="Most memory for appends that wait."
    )
    tail_bytes: int = Field(
        16_000_000, ge=1_000_000,
        description="Memory for the newest events of a log that has subscribers, a log.",
    )  # fmt: skip
    max_streams: int = Field(1_000, ge=1, description="Most calls of one connection at once.")
    max_calls: int = Field(1_000, ge=1, description="Most calls of the node at once.")
    group_term_seconds: float = Field(
        10.0,
        ge=1,
        le=300,
        description="How long members of groups on a node that died keep their partitions.",
    )
    group_buffer_bytes: int = Field(
        64_000_000, ge=1_000_000, description="Most memory for events that members are to get."
    )
    drain_seconds: float = Field(10.0, ge=0, description="How long calls may finish at a stop.")
    append_id_days: float = Field(
        2.0, gt=0, le=30, description="How long append ids are remembered."
    )
    max_clock_skew_seconds: float = Field(
        60.0, gt=0, description="Appends are refused beyond this difference of clocks."
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of the gRPC port's certificate chain."
    )
    tls_key: Path | None = Field(None, description="PEM file of its private key.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Log level.")
    log_json: bool = Field(True, description="Logs as JSON lines; else as text.")
    dev: bool = Field(False, description="Set by `everstate dev`: unsafe servers only warn.")


def load_node_settings(**overrides: object) -> NodeSettings:
    """Settings from the environment; ``overrides`` that are not None win.

    Raises:
        ConfigurationError: names the variable and what is wrong with it.

    """
    return _load(NodeSettings, overrides)


def load_worker_settings(**overrides: object) -> WorkerSettings:
    """Settings from the environment; ``overrides`` that are not None win.

    Raises:
        ConfigurationError: names the variable and what is wrong with it.

    """
    return _load(WorkerSettings, overrides)


def load_admin_settings(**overrides: object) -> AdminSettings:
    """Settings from the environment; ``overrides`` that are not None win.

    Raises:
        ConfigurationError: names the variable and what is wrong with it.

    """
    settings = _load(AdminSettings, overrides)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigurationError("EVERSTATE_TLS_CERT and EVERSTATE_TLS_KEY go together")
    if settings.tls_cert and settings.tls_key:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                settings.tls_cert, settings.tls_key
            )
        except OSError as error:  # also what OpenSSL says
            reason = getattr(error, "reason", None) or error.strerror
            raise ConfigurationError(f"EVERSTATE_TLS_CERT, EVERSTATE_TLS_KEY: {reason}") from None
    return settings


_Settings = TypeVar("_Settings", bound=DatabaseChoice)


def _load(kind: type[_Settings], overrides: Mapping[str, object]) -> _Settings:
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        settings = kind(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _explained(error) from None
    check_schema_name(settings.schema_name)
    return settings


def load_database_choice() -> DatabaseChoice:
    """Which database the environment names.

    Raises:
        ConfigurationError: none, or a wrong one.

    """
    try:
        choice = DatabaseChoice()  # type: ignore[call-arg]
    except ValidationError as error:
        raise _explained(error) from None
    check_schema_name(choice.schema_name)
    if not choice.database_url:
        raise ConfigurationError(
            "EVERSTATE_DATABASE_URL is not set; `everstate dev` brings a database of its own"
        )
    return choice


def _explained(error: ValidationError) -> ConfigurationError:
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    variable = name if name.startswith("EVERSTATE_") else f"EVERSTATE_{name.upper()}"
    return ConfigurationError(f"{variable}: {first['msg']}")


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def dev_folder() -> Path:
    """The folder of `everstate dev`."""
    return Path(os.environ.get("EVERSTATE_DEV_DIR") or ".everstate")


def dev_variables() -> dict[str, str]:
    """The EVERSTATE_* variables that a running `everstate dev` wrote into its folder."""
    found: dict[str, str] = {}
    try:
        text = (dev_folder() / "everstate.env").read_text(encoding="utf-8")
    except OSError:
        return {}
    for line in text.splitlines():
        name, sep, value = line.partition("=")
        if sep and name.startswith("EVERSTATE_"):
            found[name] = value.strip().strip("'\"")
    return found


def client_environment() -> dict[str, str]:
    """EVERSTATE_* variables for clients: the environment's, and for a loopback target those that a
    running `everstate dev` wrote into its folder.
    """
    found = dev_variables()
    host = found.get("EVERSTATE_URL", "").partition("://")[2].partition("/")[0].rpartition(":")[0]
    if not is_loopback(host):
        found = {}
    return found | {k: v for k, v in os.environ.items() if k.startswith("EVERSTATE_")}
