"""Settings of the processes, from the environment (``EVERSTATE_*``) and the command line.

The descriptions and defaults here are what docs/reference/settings.md shows.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from kernel.errors import ConfigurationError
from kernel.sql import DEFAULT_SCHEMA, check_schema_name

SCHEMA_REVISION = "0002"
"""The schema version this program needs; a test holds it equal to the newest migration."""


class DatabaseChoice(BaseSettings):
    """Which database: used by every process that opens it."""

    model_config = SettingsConfigDict(env_prefix="EVERSTATE_", extra="ignore")

    database_url: str = Field("", description="PostgreSQL 15–18: postgresql://user@host/database")
    # pydantic owns the attribute name `schema`.
    schema_name: str = Field(
        DEFAULT_SCHEMA, validation_alias="EVERSTATE_SCHEMA", description="Schema of all tables."
    )


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
    max_streams: int = Field(1_000, ge=1, description="Most calls of one connection at once.")
    max_calls: int = Field(1_000, ge=1, description="Most calls of the node at once.")
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
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        settings = NodeSettings(**given)  # type: ignore[arg-type]
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


def client_environment() -> dict[str, str]:
    """EVERSTATE_* variables for clients: the environment's, and for a loopback target those that a
    running `everstate dev` wrote into its folder.
    """
    found: dict[str, str] = {}
    file = dev_folder() / "everstate.env"
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, sep, value = line.partition("=")
            if sep and name.startswith("EVERSTATE_"):
                found[name] = value.strip().strip("'\"")
    except OSError:
        found = {}
    host = found.get("EVERSTATE_URL", "").partition("://")[2].partition("/")[0].rpartition(":")[0]
    if not is_loopback(host):
        found = {}
    return found | {k: v for k, v in os.environ.items() if k.startswith("EVERSTATE_")}
