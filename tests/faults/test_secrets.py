"""Invariant 13: no payload and no secret in logs or metrics."""

from __future__ import annotations

import urllib.request

import pytest

from kernel.errors import EverstateError
from sidecar_api.client import Append, EntityAppend, NewEvent
from tests.support import LOOPBACK, Node

MARK = "hush-7f3a"


async def test_invariant_13_no_payload_appears_in_logs_or_metrics(database_url: str) -> None:
    with Node(database_url, extra={"EVERSTATE_LOG_LEVEL": "DEBUG"}) as node:
        async with node.client() as client:
            entity = EntityAppend("cart", f"id-{MARK}")
            event = NewEvent(
                "Happened", MARK.encode(), metadata_json=f'{{"note": "{MARK}"}}', subject=MARK
            )
            await client.append("", Append((entity,), (event,)))
            bad = [
                Append((EntityAppend("cart", f"id-{MARK}", 99),), (event,)),
                Append((entity,), (NewEvent("E", MARK.encode(), metadata_json=f"{{{MARK}"),)),
                Append((entity,), (NewEvent("E", MARK.encode() * 200_000),)),
                Append((entity,), (NewEvent("E", b"", metadata_json='{"n": 1e-17000}'),)),
                Append((), (event,)),
            ]
            for append in bad:
                with pytest.raises(EverstateError):
                    await client.append("", append)
        with urllib.request.urlopen(f"http://{LOOPBACK}:{node.metrics_port}/metrics") as response:
            metrics = response.read().decode()
        assert node.stop() == 0
        assert node.running is not None
        assert "everstate_appends_refused_total" in metrics
        assert MARK not in metrics
        assert node.running.lines, "the node said nothing at all: this would prove nothing"
        assert MARK not in node.running.text
