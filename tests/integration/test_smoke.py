"""One event, end to end."""

from sidecar_api.client import Client


async def test_an_appended_event_can_be_read_back(client: Client) -> None:
    done = await client.append_event("cart", "c-1", "ItemAdded", b"{}")
    events = [event async for event in client.events("cart", "c-1")]
    assert [(e.position, e.sequence, e.payload) for e in events] == [(done.last_position, 1, b"{}")]
