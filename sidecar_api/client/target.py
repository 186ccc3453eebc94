"""Addresses of nodes: ``everstate://host:port/log`` and ``everstate+tls://…``."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from kernel.errors import ConfigurationError

DEFAULT_PORT = 7400


@dataclass(frozen=True, slots=True)
class Target:
    """Where a node is and which log is meant."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    log: str = "default"
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> Target:
        """Reads ``everstate[+tls]://host[:port][/log]``.

        Raises:
            ConfigurationError: the URL is another; secrets do not belong in it and are not echoed.

        """
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORT
        except ValueError:
            raise ConfigurationError("EVERSTATE_URL: not a URL") from None
        if parts.scheme not in ("everstate", "everstate+tls") or not parts.hostname:
            raise ConfigurationError(
                "EVERSTATE_URL: has the form everstate://host:7400/log (everstate+tls:// for TLS)"
            )
        if parts.username or parts.password or parts.query:
            raise ConfigurationError(
                "EVERSTATE_URL: no user name, password or query; secrets do not belong in URLs"
            )
        return cls(
            parts.hostname, port, parts.path.strip("/") or "default", parts.scheme.endswith("tls")
        )

    @property
    def address(self) -> str:
        """``host:port`` as gRPC wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
