"""An HTTP client that calls an ASGI application in this process, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import orjson

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """A response as it went out."""

    status: int
    raw_headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.raw_headers}

    def json(self) -> Any:
        return orjson.loads(self.body)

    def ok(self) -> Any:
        assert self.status in (200, 201, 202), self.body
        return self.json()

    def problem(self, status: int, code: str) -> dict[str, Any]:
        """The problem that the answer has to be."""
        assert self.headers["content-type"] == "application/problem+json", self.body
        body: dict[str, Any] = self.json()
        assert (self.status, body["status"], body["code"]) == (status, status, code), body
        assert body.keys() == {"type", "title", "status", "code", "detail", "field", "hint"}
        assert body["type"] == f"urn:everstate:error:{code}"
        return body


class Asgi:
    """Calls ``app`` as if from ``peer``, with ``headers`` on every request."""

    def __init__(self, app: Any, *, token: str = "", peer: str = "127.0.0.1") -> None:
        self.app = app
        self.peer = peer
        self.token = token

    def with_token(self, token: str) -> Asgi:
        return Asgi(self.app, token=token, peer=self.peer)

    async def __call__(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        *,
        json: Any = None,
        body: bytes | Iterable[bytes] = b"",
        headers: Headers = (),
        host: str | None = "127.0.0.1:7480",
    ) -> Answer:
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        if self.token:
            pairs.append(("authorization", f"Bearer {self.token}"))
        if host is not None:
            pairs.append(("host", host))
        if json is not None:
            body = orjson.dumps(json)
            pairs.append(("content-type", "application/json"))
        chunks = [body] if isinstance(body, bytes) else list(body)
        if isinstance(body, bytes) and body:
            pairs.append(("content-length", str(len(body))))
        waiting = [
            {"type": "http.request", "body": chunk, "more_body": i < len(chunks) - 1}
            for i, chunk in enumerate(chunks)
        ]
        sent: list[dict[str, Any]] = []
        done = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop(0)
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                done.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path).encode(),
            "root_path": "",
            "query_string": urlencode(query, doseq=True).encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
            "client": (self.peer, 50_000),
            "server": ("127.0.0.1", 7480),
            "state": {},
        }
        await self.app(scope, receive, send)
        start = next(message for message in sent if message["type"] == "http.response.start")
        whole = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        return Answer(start["status"], tuple(start["headers"]), whole)

    async def get(self, path: str, query: Any = (), **more: Any) -> Answer:
        return await self("GET", path, query, **more)

    async def post(self, path: str, json: Any = None, **more: Any) -> Answer:
        return await self("POST", path, json=json, **more)
