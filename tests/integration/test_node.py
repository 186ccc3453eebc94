"""A node seen from the wire: statuses and their details, health, reflection, metrics, drain."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from everstate.container import node as run_node
from everstate.settings import NodeSettings
from kernel.errors import InvalidArgument
from kernel.ids import new_id
from sidecar_api.client import Append as ModelAppend
from sidecar_api.client import Client, EntityAppend, NewEvent, NewSnapshot
from sidecar_api.generated import journal_pb2 as pb
from sidecar_api.generated import journal_pb2_grpc
from sidecar_api.server import NodeServer
from sidecar_api.services.journal import JournalService

Stub = Any


@pytest.fixture
async def stub(node: NodeServer) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        yield journal_pb2_grpc.JournalServiceStub(channel)


def an_append(*entities: pb.EntityAppend, events: int = 1) -> pb.AppendRequest:
    return pb.AppendRequest(
        entities=entities,
        events=[
            pb.NewEvent(entity=i, type="E", payload=b"x", event_id=new_id())
            for i in range(len(entities))
            for _ in range(events)
        ],
    )


async def test_the_log_of_the_audit_is_read_and_never_written_by_clients(
    stub: Stub, client: Client
) -> None:
    append = ModelAppend((EntityAppend("operation", "op-1"),), (NewEvent("OperationApplied", b""),))
    snapshot = NewSnapshot("S", b"")
    for write in (
        partial(client.append, "_system", append),  # by AppendStream
        partial(client.snapshots.save, "_system", "operation", "op-1", 1, snapshot),
        partial(client.snapshots.delete, "_system", "operation", "op-1", 1),
    ):
        with pytest.raises(InvalidArgument, match="log: _system is written by Everstate itself"):
            await write()
    unary = an_append(expecting("a", 0))
    unary.log = "_system"
    code, _ = await failure_of(stub.Append(unary))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert (await client.get_log("_system")).head == 0


def expecting(name: str, sequence: int) -> pb.EntityAppend:
    return pb.EntityAppend(
        entity_type="cart", entity_id=name, expected=pb.Expected(sequence=sequence)
    )


async def failure_of(call: Any) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """The code of a failed call and its details by type name."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None
    kinds = {
        "google.rpc.ErrorInfo": error_details_pb2.ErrorInfo,
        "google.rpc.BadRequest": error_details_pb2.BadRequest,
        "google.rpc.RetryInfo": error_details_pb2.RetryInfo,
        "everstate.journal.v1.WrongExpectedStateDetail": pb.WrongExpectedStateDetail,
        "everstate.journal.v1.OutOfRangeDetail": pb.OutOfRangeDetail,
        "everstate.journal.v1.TooLargeDetail": pb.TooLargeDetail,
    }
    details: dict[str, Any] = {}
    for packed in status.details:
        message = kinds[packed.TypeName()]()
        packed.Unpack(message)
        details[packed.TypeName().rpartition(".")[2]] = message
    return caught.value.code(), details


async def test_a_wrong_expected_state_is_aborted_with_expected_and_actual_of_every_check(
    stub: Stub,
) -> None:
    await stub.Append(an_append(expecting("a", 0), events=3))
    code, details = await failure_of(stub.Append(an_append(expecting("a", 1), expecting("b", 7))))
    assert code is grpc.StatusCode.ABORTED
    assert details["ErrorInfo"].reason == "WRONG_EXPECTED_STATE"
    checks = details["WrongExpectedStateDetail"].failures
    assert [(c.entity_id, c.expected.sequence, c.actual_sequence) for c in checks] == [
        ("a", 1, 3),
        ("b", 7, 0),
    ]


async def test_a_thousand_failed_checks_still_fit_into_the_trailers(stub: Stub) -> None:
    many = an_append(*(expecting(f"{'x' * 200}{i}", 5) for i in range(1000)))
    code, details = await failure_of(stub.Append(many))
    assert code is grpc.StatusCode.ABORTED
    detail = details["WrongExpectedStateDetail"]
    assert detail.failures_total == 1000
    assert 0 < len(detail.failures) < 1000


async def test_a_log_that_exists_is_already_exists(stub: Stub) -> None:
    await stub.CreateLog(pb.CreateLogRequest(log="orders", chunk_size=64))
    code, details = await failure_of(stub.CreateLog(pb.CreateLogRequest(log="orders")))
    assert (code, details["ErrorInfo"].metadata["log"]) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "orders",
    )


async def test_an_unknown_entity_and_an_unknown_log_are_not_found(stub: Stub) -> None:
    request = pb.GetEntityRequest(entity_type="cart", entity_id="nobody")
    code, details = await failure_of(stub.GetEntity(request))
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.NOT_FOUND, "ENTITY_NOT_FOUND")
    code, details = await failure_of(stub.GetLog(pb.GetLogRequest(log="nothing")))
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.NOT_FOUND, "LOG_NOT_FOUND")


async def test_a_bad_field_is_invalid_argument_and_named(stub: Stub) -> None:
    bad = an_append(pb.EntityAppend(entity_type="cart", entity_id="a\nb"))
    code, details = await failure_of(stub.Append(bad))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "entities[0].entity_id"


async def test_a_payload_over_the_limit_is_resource_exhausted_with_the_limit(stub: Stub) -> None:
    large = pb.AppendRequest(
        entities=[expecting("a", 0)], events=[pb.NewEvent(type="E", payload=b"x" * 1_000_001)]
    )
    code, details = await failure_of(stub.Append(large))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (details["TooLargeDetail"].field, details["TooLargeDetail"].limit) == (
        "events[0].payload",
        1_000_000,
    )


async def test_a_message_over_the_limit_is_resource_exhausted(stub: Stub) -> None:
    large = pb.AppendRequest(append_id="x" * 8_000_001)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Append(large)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_position_beyond_the_head_is_out_of_range_with_first_and_head(stub: Stub) -> None:
    await stub.Append(an_append(expecting("a", 0), events=2))
    code, details = await failure_of(stub.ReadLog(pb.ReadLogRequest(from_position=4)).read())
    assert code is grpc.StatusCode.OUT_OF_RANGE
    bounds = details["OutOfRangeDetail"]
    assert (bounds.position, bounds.first, bounds.head) == (4, 1, 2)


async def test_a_refused_append_fails_neither_its_message_nor_its_stream(stub: Stub) -> None:
    call = stub.AppendStream()
    appends = [
        an_append(expecting("a", 0)),
        an_append(expecting("b", 9)),
        an_append(pb.EntityAppend(entity_type="", entity_id="c")),
        an_append(expecting("d", 0)),
    ]
    await call.write(
        pb.AppendStreamRequest(
            appends=[pb.IdentifiedAppend(id=i, append=a) for i, a in enumerate(appends)]
        )
    )
    results: dict[int, pb.AppendResult] = {}
    while len(results) < 4:
        response = await call.read()
        results |= {result.id: result for result in response.results}
    assert results[0].HasField("appended")
    assert results[3].HasField("appended")
    assert results[1].error.code == grpc.StatusCode.ABORTED.value[0]
    assert results[2].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_message_that_is_not_utf8_is_invalid_argument(node: NodeServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        raw = channel.unary_unary(f"/{JournalService.name}/GetLog")
        code, details = await failure_of(raw(b"\x0a\x02\xff\xfe"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "message"


async def test_health_says_serving_until_the_node_drains(node: NodeServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=JournalService.name))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(node.stop(timedelta(seconds=5)))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await stopping


async def test_reflection_lists_the_journal_and_its_descriptor(node: NodeServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        assert JournalService.name in {service.name for service in listed}
        await call.write(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=JournalService.name)
        )
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.done_writing()


async def test_draining_ends_append_streams_after_the_results_of_what_was_read(
    node: NodeServer, stub: Stub
) -> None:
    call = stub.AppendStream()
    await call.write(
        pb.AppendStreamRequest(
            appends=[pb.IdentifiedAppend(id=1, append=an_append(expecting("a", 0)))]
        )
    )
    assert (await call.read()).results[0].HasField("appended")
    stopping = asyncio.create_task(node.stop(timedelta(seconds=10)))
    assert await call.read() is grpc.aio.EOF
    await stopping


async def test_metrics_and_health_over_http_tell_what_happened(database_url: str) -> None:
    settings = NodeSettings(database_url=database_url, grpc_port=0, metrics_port=0)

    def get(port: int, path: str) -> tuple[int, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()

    async with run_node(settings, "127.0.0.1") as running:
        async with Client(f"everstate://127.0.0.1:{running.grpc_port}") as client:
            for i in range(3):
                await client.append_event("cart", f"metrics-{i}", "E", b"x")
            refused = ModelAppend((EntityAppend("cart", "metrics-0", 7),), (NewEvent("E", b""),))
            with pytest.raises(Exception, match="found sequence 1"):
                await client.append("", refused)
        port = running.metrics_port
        assert await asyncio.to_thread(get, port, "/healthz") == (200, "ok\n")
        assert await asyncio.to_thread(get, port, "/readyz") == (200, "ready\n")
        status, text = await asyncio.to_thread(get, port, "/metrics")
    assert status == 200
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['everstate_appends_total{log="default"}']) >= 3
    assert float(lines['everstate_log_head{log="default"}']) == 3
    reason = 'everstate_appends_refused_total{log="default",reason="WRONG_EXPECTED_STATE"}'
    assert float(lines[reason]) >= 1
    assert float(lines['everstate_chunks_ahead{log="default"}']) == 2
    for name in (
        "everstate_batch_appends_count",
        "everstate_commit_seconds_count",
        "everstate_database_xmin_age_seconds",
        'everstate_pool_connections{state="open"}',
        'everstate_appends_in_flight{log="default"}',
    ):
        assert name in lines
