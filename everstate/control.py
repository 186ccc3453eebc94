"""The HTTP client of the command line: one admin, one token, JSON in and out.

Nothing is followed anywhere (no redirects, no proxies of the environment): a token goes to the
address that was named and to no other. The token of `everstate dev` goes to this machine only.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import orjson

from everstate.settings import dev_variables, is_loopback
from kernel import errors as e
from kernel.ids import new_id

REACH_SECONDS = 2.0
"""An admin that does not answer within this is unreachable (exit 5), unless told to wait."""
_ANSWER_BYTES = 256_000_000
_SILENCE = 40.0
"""A stream that says nothing for so long has broken: the admin pings every 15 seconds."""
_STREAM_AGAIN = 0.2

_KINDS: Mapping[str, type[e.EverstateError]] = {
    kind.code: kind
    for kind in vars(e).values()
    if isinstance(kind, type) and issubclass(kind, e.EverstateError)
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the admin is, and with which token."""

    host: str
    port: int
    tls: bool = False
    token: str = field(default="", repr=False)
    ca: str | None = None

    @property
    def url(self) -> str:
        """The address as people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def target(url: str | None = None) -> Target:
    """The admin that ``url``, the environment or a running `everstate dev` names.

    Raises:
        ConfigurationError: the URL or the file of the token cannot be used.

    """
    environment = os.environ
    dev = dev_variables()
    port = environment.get("EVERSTATE_ADMIN_PORT")
    chosen = url or environment.get("EVERSTATE_ADMIN_URL")
    if not chosen and not port and is_loopback(_parse(dev.get("EVERSTATE_ADMIN_URL", "")).host):
        chosen = dev["EVERSTATE_ADMIN_URL"]
    place = _parse(chosen or f"http://127.0.0.1:{port or 7480}")
    if not place.host:
        raise e.ConfigurationError(
            "EVERSTATE_ADMIN_URL (or --url) is not like http://host:7480 or https://host"
        )
    token = environment.get("EVERSTATE_TOKEN") or _from_file(environment)
    if not token and is_loopback(place.host):
        token = dev.get("EVERSTATE_TOKEN", "")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise e.ConfigurationError("EVERSTATE_TOKEN: is not a token")
    return Target(place.host, place.port, place.tls, token, environment.get("EVERSTATE_TLS_CA"))


def _parse(url: str) -> Target:
    """Host, port and scheme of a URL; no host when it is not one that we can use."""
    try:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        if parts.scheme not in ("http", "https") or parts.username or parts.path not in ("", "/"):
            return Target("", 0)
        return Target(parts.hostname or "", parts.port or (443 if tls else 80), tls)
    except ValueError:
        return Target("", 0)


def _from_file(environment: Mapping[str, str]) -> str:
    path = environment.get("EVERSTATE_TOKEN_FILE")
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise e.ConfigurationError(f"EVERSTATE_TOKEN_FILE: {path}: {reason}") from None


class Control:
    """Calls of one admin. ``wait``: seconds to wait for one that cannot be reached."""

    def __init__(self, at: Target, wait: float = 0.0) -> None:
        self.target = at
        self._patience = max(wait, REACH_SECONDS)
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def get(self, path: str, query: Mapping[str, Any] | None = None, timeout: float = 30) -> Any:
        """The JSON of an answer.

        Raises:
            EverstateError: what the admin says, or that it cannot be reached.

        """
        return self._call("GET", path, query, None, timeout)

    def post(
        self,
        path: str,
        body: object = None,
        query: Mapping[str, Any] | None = None,
        timeout: float = 100,
    ) -> Any:
        """Acts once, also when the connection breaks and it has to be sent again."""
        return self._call("POST", path, query, body, timeout, {"Idempotency-Key": new_id()})

    def put(self, path: str, body: object, seen: str, timeout: float = 30) -> Any:
        """Sets what is there, provided that it is still as it was ``seen`` (its ETag)."""
        return self._call("PUT", path, None, body, timeout, {"If-Match": seen})

    def events(self, path: str, deadline: float | None = None) -> Iterator[tuple[str, Any]]:
        """Server-sent events, as names and JSON; ends after an event ``end`` or at the deadline.

        A stream that breaks off or ends before that is asked for again, for as long as the admin
        can be reached. ``deadline`` is of `time.monotonic`.

        Raises:
            EverstateError: what the admin says, or that it cannot be reached.

        """
        while deadline is None or time.monotonic() < deadline:
            began = time.monotonic()
            try:
                for name, data in self._streamed(path, deadline):
                    yield name, data
                    if name == "end":
                        return
            except (OSError, http.client.HTTPException):
                pass  # a broken stream; the next try finds out whether there is an admin
            finally:
                self._drop()
            if time.monotonic() - began < _STREAM_AGAIN:  # a stream that ends at once
                time.sleep(_STREAM_AGAIN)

    def _streamed(self, path: str, deadline: float | None) -> Iterator[tuple[str, Any]]:
        """The events of one stream."""
        sent = {"Accept": "text/event-stream"}
        if self.target.token:
            sent["Authorization"] = f"Bearer {self.target.token}"
        response = self._opened(path, sent)
        if response.status != 200 or response.headers.get_content_type() != "text/event-stream":
            self._understood(response)
        name, data = "", ""
        while True:
            left = _SILENCE if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            if (sock := getattr(self._connection, "sock", None)) is not None:
                sock.settimeout(min(left, _SILENCE))
            line = response.readline(_ANSWER_BYTES)
            if not line:
                return
            text = line.decode().rstrip("\r\n")
            if not text:
                if data:
                    yield name, orjson.loads(data)
                name, data = "", ""
            elif text.startswith("event:"):
                name = text.removeprefix("event:").strip()
            elif text.startswith("data:"):
                data += text.removeprefix("data:").strip()

    def _opened(self, path: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        until = time.monotonic() + self._patience
        while True:
            try:
                connection = self._connected(until)
                connection.request("GET", path, headers=dict(headers))
                if connection.sock is not None:
                    connection.sock.settimeout(_SILENCE)
                return connection.getresponse()
            except (OSError, http.client.HTTPException, e.Unavailable) as error:
                self._drop()
                if time.monotonic() + _STREAM_AGAIN > until:
                    raise self._unreachable(error) from None
                time.sleep(_STREAM_AGAIN)

    def rows(
        self, path: str, query: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """All rows of a list, page by page, or the first ``limit``."""
        asked = dict(query or {})
        left = limit
        while left is None or left > 0:
            asked["limit"] = min(1_000, left or 1_000)
            page = self.get(path, asked)
            yield from page["rows"]
            left = None if left is None else left - len(page["rows"])
            if page["next"] is None:
                return
            asked["next"] = page["next"]

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: object,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        where = path + (f"?{urlencode(query, doseq=True)}" if query else "")
        data = None if body is None else orjson.dumps(body)
        sent = {"Accept": "application/json", "Connection": "keep-alive", **(headers or {})}
        if self.target.token:
            sent["Authorization"] = f"Bearer {self.target.token}"
        if data is not None:
            sent["Content-Type"] = "application/json"
        deadline = time.monotonic() + self._patience
        pause = 0.05
        while True:
            try:
                connection = self._connected(deadline)
                connection.request(method, where, data, sent)
                if connection.sock is not None:
                    connection.sock.settimeout(timeout)
                return self._understood(connection.getresponse())
            except TimeoutError:
                self._drop()
                raise e.DeadlineExceeded(f"no answer of {self.target.url} in time") from None
            except (OSError, http.client.HTTPException, e.Unavailable) as error:
                self._drop()
                if time.monotonic() + pause > deadline:
                    raise self._unreachable(error) from None
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _connected(self, deadline: float) -> http.client.HTTPConnection:
        """A connection to an admin that has shown that it answers."""
        if self._connection is not None:
            return self._connection
        at = self.target
        seconds = max(0.1, min(REACH_SECONDS, deadline - time.monotonic()))
        if at.tls:
            context = ssl.create_default_context(cafile=at.ca)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                at.host, at.port, timeout=seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(at.host, at.port, timeout=seconds)
        try:
            # Without a token: this only asks whether somebody answers HTTP there.
            connection.request("HEAD", "/healthz")
            connection.getresponse().read()
        except TimeoutError:
            connection.close()
            raise e.Unavailable("it does not answer") from None
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _unreachable(self, error: Exception) -> e.EverstateError:
        if isinstance(error, e.Unavailable) and error.message.startswith("admin: "):
            return e.Unavailable(error.message.removeprefix("admin: "))
        if isinstance(error, ssl.SSLError):
            reason = getattr(error, "verify_message", None) or error.reason or "TLS failed"
        elif isinstance(error, e.Unavailable):
            reason = error.message
        else:
            reason = getattr(error, "strerror", None) or type(error).__name__
        return e.Unavailable(f"the admin at {self.target.url} cannot be reached ({reason})")

    def _understood(self, response: http.client.HTTPResponse) -> Any:
        body = response.read(_ANSWER_BYTES)
        kind = response.headers.get_content_type()
        try:
            said = orjson.loads(body) if body else None
        except orjson.JSONDecodeError:
            said = None
        if response.status < 300 and kind == "application/json":
            return said
        if kind == "application/problem+json" and isinstance(said, dict):
            raise _error(said)
        raise e.ConfigurationError(
            f"what answers at {self.target.url} is not an Everstate admin "
            f"(status {response.status}, {kind})"
        )


def _error(said: Mapping[str, Any]) -> e.EverstateError:
    """The error of a problem; it has the message, the field and the class of the server's."""
    kind = _KINDS.get(str(said.get("code")), e.InternalError)
    message = str(said.get("detail"))
    if kind is e.Unavailable:
        return e.Unavailable(f"admin: {message}")
    error = kind.__new__(kind)
    e.EverstateError.__init__(error, message)
    if said.get("field"):
        error.__dict__["field"] = str(said["field"])
    if kind is e.Overloaded:
        error.__dict__["retry_after"] = timedelta(seconds=1)
    return error


def warn_in_the_clear(at: Target) -> None:
    """Says so when a token would travel unencrypted beyond this machine."""
    if at.token and not at.tls and not is_loopback(at.host):
        sys.stderr.write(f"warning: the token travels unencrypted to {at.host}; use https://\n")
