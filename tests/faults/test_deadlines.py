"""A database that is away or does not answer: callers are told soon, and nothing is left behind."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import asyncpg
import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from kernel.devdb import DevDatabase
from kernel.errors import DeadlineExceeded
from kernel.ids import new_id
from sidecar_api.client import ClientSettings
from sidecar_api.errors import from_status
from sidecar_api.generated import journal_pb2 as pb
from sidecar_api.generated import journal_pb2_grpc
from tests.support import LOOPBACK, Node, eventually_async, everything, one, verified


@pytest.fixture
def node(database_url: str) -> Iterator[Node]:
    with Node(database_url) as running:
        yield running


@pytest.fixture
async def blocked(node: Node) -> AsyncIterator[asyncpg.Connection]:
    """A connection that holds the rows of all logs, so that no append can begin."""
    async with node.client() as client:
        await client.append("", one("before"))
    connection = await asyncpg.connect(node.database_url)
    await connection.execute("BEGIN")
    await connection.execute("SELECT FROM everstate.logs FOR UPDATE")
    yield connection
    await connection.close()


def request(entity_id: str, expected: int = 0) -> pb.AppendRequest:
    return pb.AppendRequest(
        entities=[
            pb.EntityAppend(
                entity_type="t", entity_id=entity_id, expected=pb.Expected(sequence=expected)
            )
        ],
        events=[pb.NewEvent(type="E", payload=b"x", event_id=new_id())],
    )


async def active_statements(connection: asyncpg.Connection) -> int:
    return await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'everstate-node'"
        " AND state = 'active' AND datname = current_database()"
    )


@pytest.mark.parametrize("call", ["unary", "stream"])
async def test_a_deadline_reaches_the_database_and_nothing_is_left_behind(
    node: Node, blocked: asyncpg.Connection, call: str
) -> None:
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{node.grpc_port}") as channel:
        stub = journal_pb2_grpc.JournalServiceStub(channel)
        began = time.monotonic()
        if call == "unary":
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Append(request("late"), timeout=0.3)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            stream = stub.AppendStream(timeout=20)
            item = pb.IdentifiedAppend(id=7, append=request("late"), timeout_ms=300)
            await stream.write(pb.AppendStreamRequest(appends=[item]))
            (result,) = (await stream.read()).results
            assert result.id == 7
            assert isinstance(from_status(result.error), DeadlineExceeded)
            stream.cancel()
        assert time.monotonic() - began < 1.5

        # Of its own: inside a transaction pg_stat_activity stays as it was first seen.
        observer = await asyncpg.connect(node.database_url)

        async def ended() -> bool:
            return await active_statements(observer) == 0

        try:
            await eventually_async(ended, "its statement ends on the server", 1.5)
        finally:
            await observer.close()
        await blocked.execute("ROLLBACK")
        # The log goes on, and what was late was not written.
        done = await stub.Append(request("next"), timeout=10)
    assert done.last_position == 2
    async with node.client() as client:
        assert [e.entity_id for e in await everything(client)] == ["before", "next"]


async def test_appends_of_the_same_batch_keep_their_own_deadlines(
    node: Node, blocked: asyncpg.Connection
) -> None:
    """The patient one is written although it waited in the batch of the impatient one."""
    async with node.client() as client:
        patient = client.append("", one("patient"), timeout=timedelta(seconds=20))
        hasty = client.append("", one("hasty"), timeout=timedelta(milliseconds=300))

        tasks = [asyncio.ensure_future(patient), asyncio.ensure_future(hasty)]
        with pytest.raises(DeadlineExceeded):
            await tasks[1]
        assert not tasks[0].done()
        await blocked.execute("ROLLBACK")
        await tasks[0]
        names = [event.entity_id for event in await everything(client)]
        assert names[0] == "before"
        assert names.count("patient") == 1
        await verified(client)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_a_database_that_is_away_is_unavailable_at_once_with_retry_info(
    postgres: DevDatabase,
) -> None:
    with Node(postgres.dsn()) as node:
        health = f"http://{LOOPBACK}:{node.metrics_port}"
        assert get(f"{health}/readyz")[0] == 200
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{node.grpc_port}") as channel:
            stub = journal_pb2_grpc.JournalServiceStub(channel)
            await stub.Append(request("a"), timeout=10)
            postgres.kill()
            calls = [
                lambda: stub.Append(request("a", 1), timeout=10),
                lambda: stub.GetLog(pb.GetLogRequest(), timeout=10),
                lambda: stub.GetEntity(
                    pb.GetEntityRequest(entity_type="t", entity_id="a"), timeout=9
                ),
            ]
            for _ in range(2):  # the first may find a connection broken, the second finds none
                for call in calls:
                    began = time.monotonic()
                    with pytest.raises(grpc.aio.AioRpcError) as raised:
                        await call()
                    assert time.monotonic() - began < 2
                    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            status = rpc_status.from_call(raised.value)
            assert status is not None
            retry = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(retry) for detail in status.details)
            assert timedelta(0) < retry.retry_delay.ToTimedelta() <= timedelta(seconds=5)
            assert get(f"{health}/healthz") == (200, "ok\n"), "the process itself is well"
            assert get(f"{health}/readyz")[0] == 503

            postgres.start()

            async def back() -> bool:
                return get(f"{health}/readyz")[0] == 200

            await eventually_async(back, "the node has its database again")
            assert (await stub.Append(request("a", 1), timeout=10)).last_position == 2


async def test_a_client_waits_for_a_database_that_comes_back(postgres: DevDatabase) -> None:
    settings = ClientSettings(retry_for=timedelta(seconds=30))
    with Node(postgres.dsn()) as node:
        async with node.client(settings) as client:
            await client.append("", one("a"))
            postgres.kill()

            append = asyncio.ensure_future(client.append("", one("b")))
            load = asyncio.ensure_future(client.get_entity("", "thing", "a"))
            await asyncio.wait({append, load}, timeout=0.5)
            assert not append.done()
            postgres.start()
            assert (await append).last_position == 2
            assert (await load).sequence == 1


def test_a_server_that_is_stopped_in_order_is_no_crash_of_the_node(postgres: DevDatabase) -> None:
    with Node(postgres.dsn()) as node:
        assert node.cli("entity", "append", "a/b", "--event-type=E", "--data=1").ok()
        restart(postgres)
        assert node.cli("entity", "append", "a/b", "--event-type=E", "--data=2", "--wait=20").ok()
        with psycopg.connect(postgres.dsn()) as connection:
            row = connection.execute("SELECT max(position) FROM everstate.events").fetchone()
        assert row == (2,)


def restart(postgres: DevDatabase) -> None:
    """Backends are told to end (57P01) while the node holds them idle."""
    postgres.restart()
