"""What the client commands share: options, connecting, printing."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

if TYPE_CHECKING:
    from everstate.control import Control
    from sidecar_api.client import Client, EventView

Url = Annotated[
    str | None,
    typer.Option("--url", help="Node [EVERSTATE_URL, everstate://127.0.0.1:7400/default]."),
]
AdminUrl = Annotated[
    str | None, typer.Option("--url", help="Admin [EVERSTATE_ADMIN_URL, http://127.0.0.1:7480].")
]
Log = Annotated[str, typer.Option("--log", help="Log; default: that of the URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors as JSON on stderr.")]
Wait = Annotated[
    float, typer.Option("--wait", help="Seconds to wait for a server that cannot be reached.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Show at most so many.")]

Upcast = Annotated[
    bool,
    typer.Option("--upcast", help="Present shape: run the upcasters that everstate.toml names."),
]

REACH_SECONDS = 2.0
"""A node that does not answer within this is unreachable (exit 5), unless told to wait."""


def run(
    work: Callable[[Client], Awaitable[int | None]], url: str | None, wait: float = 0.0
) -> None:
    """Connects, runs ``work``, exits with what it returns (None: 0)."""
    from everstate.settings import client_environment
    from sidecar_api.client import Client, ClientSettings, Target

    environment = client_environment()
    target = Target.parse(url or environment.get("EVERSTATE_URL") or "everstate://127.0.0.1:7400")
    ca = environment.get("EVERSTATE_TLS_CA")
    patience = timedelta(seconds=max(wait, REACH_SECONDS))
    settings = ClientSettings(retry_for=patience, tls_ca=Path(ca) if ca else None)

    async def session() -> int:
        async with Client(target, settings) as client:
            await reach(client, patience)
            return await work(client) or 0

    raise typer.Exit(asyncio.run(session()))


def control(url: str | None, wait: float = 0.0) -> Control:
    """The admin that the command speaks to."""
    from everstate.control import Control, target, warn_in_the_clear

    at = target(url)
    warn_in_the_clear(at)
    return Control(at, wait)


async def reach(client: Client, patience: timedelta) -> None:
    """Raises `Unavailable` when the node does not answer within ``patience``."""
    from kernel.errors import DeadlineExceeded, Unavailable

    try:
        await client.server_info(timeout=patience)
    except (DeadlineExceeded, Unavailable) as error:
        raise Unavailable(
            f"the node at {client.target.address} cannot be reached "
            f"({error.message.splitlines()[0]:.200})"
        ) from None


def show(value: object) -> None:
    """Prints one line of JSON."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")


def shown_payload(event: EventView) -> dict[str, Any]:
    """The payload as ``data`` when it is JSON that prints back to the same bytes, else base64."""
    from base64 import b64encode

    payload = event.payload
    if event.content_type == "application/json":
        try:
            data = orjson.loads(payload)
        except orjson.JSONDecodeError:
            data = None
        else:
            if orjson.dumps(data) == payload:
                return {"data": data}
    return {"payload_base64": b64encode(payload).decode()}


def event_line(event: EventView, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """An event as a line of export files; ``body``: its content, if not `shown_payload`."""
    from kernel import clock

    line: dict[str, Any] = {
        "entity_type": event.entity_type,
        "entity_id": event.entity_id,
        "type": event.type,
        "sequence": event.sequence,
        "event_id": event.event_id,
        "content_type": event.content_type,
    }
    if event.client_time_us:
        line["time"] = clock.format_us(event.client_time_us)
    line |= shown_payload(event) if body is None else body
    if event.metadata_json:
        line["metadata"] = orjson.loads(event.metadata_json)
    for name in ("correlation_id", "causation_id", "traceparent", "subject", "schema_version"):
        value = getattr(event, name)
        if value:
            line[name] = value
    line["position"] = event.position
    line["recorded_at"] = clock.format_us(event.recorded_at_us)
    return line


def printable(text: str) -> str:
    """Text that cannot move the terminal's cursor or change its colours."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def said(error: dict[str, Any]) -> str:
    """What an error of the admin says, or what it is and where when it may not be quoted to us."""
    if (message := error.get("message")) is not None:
        return str(message)
    words = [str(error[key]) for key in ("code", "sqlstate", "where") if error.get(key)]
    return f"{', '.join(words)} (the message needs the grant payload)"


def event_text(event: EventView, body: dict[str, Any] | None = None) -> str:
    """An event as a line for people; ``body``: its content, if not `shown_payload`."""
    from kernel import clock

    body = shown_payload(event) if body is None else body
    shape = body.get("present", body)
    kind = shape.get("type", event.type)
    if "data" in shape:
        content = orjson.dumps(shape["data"]).decode()
    else:
        content = f"{len(event.payload)} bytes"
        if "undecodable" in body:
            content += f" ({body['undecodable']})"
    if len(content) > 100:
        content = content[:99] + "…"
    moment = clock.format_us(event.client_time_us or event.recorded_at_us)
    return f"{event.sequence:>6}  {moment[:19]}Z  {printable(kind)}  {printable(content)}"


async def position_of(client: Client, log: str, text: str, *, last: bool = False) -> int | None:
    """A position given as such or as a time; empty: 0.

    A time stands for the first event recorded at or after it (head + 1: none was), with ``last``
    for the last one recorded at or before it (None: none was).
    """
    from kernel import clock

    if not text:
        return 0
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    moment = clock.parse_us("--to" if last else "--from", text)
    position, _ = await client.position_at(log, moment + last)
    return (position - 1 or None) if last else position
