"""`everstate.group.v1.GroupService` on `journal.groups.node.Groups`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc
import structlog

from journal.groups.model import (
    MAX_CREDITS,
    Group,
    GroupChange,
    GroupSettings,
    ParkedEvent,
    ParkedSelection,
)
from journal.groups.node import Groups
from journal.groups.session import Output, Session
from journal.rows import Names
from kernel.errors import DeadlineExceeded, EverstateError, InternalError, InvalidArgument
from operations.doors import Through, through
from sidecar_api import convert
from sidecar_api.generated import group_pb2 as pb
from sidecar_api.services.calls import BadMessage, Method, caller_of
from sidecar_api.services.journal import write

log = structlog.get_logger(__name__)

Context = Any

JOIN_SECONDS = 10.0
"""How long a stream may be open without saying which group it is for."""

STALLED_SECONDS = 60.0
"""How long a member may leave a message unread before its stream is ended."""

MAX_RETRY_AFTER_MS = 86_400_000

MAX_SETTLED = 2 * MAX_CREDITS
"""Deliveries that one request may name: as many as can be out, once settled and once extended."""


class GroupService:
    """The calls of the service; `sidecar_api.server` registers them."""

    def __init__(self, groups: Groups, names: Names) -> None:
        self._groups = groups
        self._names = names

    name = pb.DESCRIPTOR.services_by_name["GroupService"].full_name

    def methods(self) -> Sequence[Method]:
        """See `sidecar_api.services.calls.Service.methods`."""
        return (
            Method("CreateGroup", "unary", pb.CreateGroupRequest, self.create),
            Method("UpdateGroup", "unary", pb.UpdateGroupRequest, self.update),
            Method("DeleteGroup", "unary", pb.DeleteGroupRequest, self.delete),
            Method("GetGroup", "unary", pb.GetGroupRequest, self.get),
            Method("ListGroups", "unary", pb.ListGroupsRequest, self.list_groups),
            Method("Connect", "both", pb.ConnectRequest, self.connect),
            Method("ListParked", "unary", pb.ListParkedRequest, self.list_parked),
            Method("ReplayParked", "unary", pb.ReplayParkedRequest, self.replay_parked),
            Method("DiscardParked", "unary", pb.DiscardParkedRequest, self.discard_parked),
            Method("Seek", "unary", pb.SeekRequest, self.seek),
        )

    def drain(self) -> None:
        """Members are sent elsewhere."""
        self._groups.drain()

    # Groups

    async def create(self, request: pb.CreateGroupRequest, _context: Context) -> pb.Group:
        group = await self._groups.create(
            request.name, request.log, _settings(request.settings), request.from_position
        )
        return group_message(group)

    async def update(self, request: pb.UpdateGroupRequest, _context: Context) -> pb.Group:
        def given(field: str) -> Any:
            return getattr(request, field) if request.HasField(field) else None  # type: ignore[arg-type]

        def ms(field: str) -> timedelta | None:
            value = given(field)
            return None if value is None else timedelta(milliseconds=value)

        entity_types, event_types = given("entity_types"), given("event_types")
        change = GroupChange(
            None if entity_types is None else tuple(entity_types.types),
            None if event_types is None else tuple(event_types.types),
            given("entity_window"), ms("ack_timeout_ms"), given("max_attempts"),
            ms("backoff_min_ms"), ms("backoff_max_ms"), given("skip_parked"), given("max_parked"),
        )  # fmt: skip
        return group_message(await self._groups.update(request.name, request.version, change))

    async def delete(
        self, request: pb.DeleteGroupRequest, _context: Context
    ) -> pb.DeleteGroupResponse:
        return pb.DeleteGroupResponse(parked=await self._groups.delete(request.name))

    async def get(self, request: pb.GetGroupRequest, _context: Context) -> pb.Group:
        return group_message(await self._groups.get(request.name))

    async def list_groups(
        self, request: pb.ListGroupsRequest, _context: Context
    ) -> pb.ListGroupsResponse:
        page = await self._groups.list_groups(request.page_size, request.page_token)
        return pb.ListGroupsResponse(
            groups=map(group_message, page.groups), next_page_token=page.next_page_token
        )

    async def seek(self, request: pb.SeekRequest, context: Context) -> pb.Group:
        first = self._door("seek", request.group, "GroupSought", context)
        return group_message(await self._groups.seek(request.group, request.position, first=first))

    def _door(self, kind: str, group: str, type_: str, context: Context) -> Through:
        schema = self._groups.store.database.schema
        data = {"group": group, "direct": True}
        return through(schema, kind, ("group", group), type_, data, caller_of(context))

    # Parked events

    async def list_parked(
        self, request: pb.ListParkedRequest, _context: Context
    ) -> pb.ListParkedResponse:
        page = await self._groups.parked(
            request.group, _selection(request.selection), request.page_size, request.page_token
        )
        return pb.ListParkedResponse(
            events=map(_parked, page.events), next_page_token=page.next_page_token
        )

    async def replay_parked(
        self, request: pb.ReplayParkedRequest, context: Context
    ) -> pb.ReplayParkedResponse:
        count = await self._groups.replay(
            request.group, _selection(request.selection), request.rate, dry_run=request.dry_run,
            first=self._door("replay-parked", request.group, "ParkedReplayed", context),
        )  # fmt: skip
        return pb.ReplayParkedResponse(
            events=count.events, entities=count.entities, held=count.held
        )

    async def discard_parked(
        self, request: pb.DiscardParkedRequest, context: Context
    ) -> pb.DiscardParkedResponse:
        count = await self._groups.discard(
            request.group, _selection(request.selection), dry_run=request.dry_run,
            first=self._door("discard-parked", request.group, "ParkedDiscarded", context),
        )  # fmt: skip
        return pb.DiscardParkedResponse(
            events=count.events, entities=count.entities, held=count.held
        )

    # Members

    async def connect(self, _requests: object, context: Context) -> None:
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                first = await context.read()
        except TimeoutError:
            raise DeadlineExceeded(f"no `join` within {JOIN_SECONDS:.0f} s") from None
        if first is grpc.aio.EOF:
            return
        if isinstance(first, BadMessage):
            raise InvalidArgument("message", first.reason)
        if not first.HasField("join"):
            raise InvalidArgument("join", "has to be in the first request")
        join = first.join
        session = await self._groups.join(join.group, join.name, join.credits)
        reader = asyncio.create_task(self._read(session, context))
        try:
            group = await self._groups.get(join.group)
            joined = pb.Joined(member_id=str(session.member), group=group_message(group))
            await write(context, pb.ConnectResponse(joined=joined), STALLED_SECONDS)
            while (output := await session.output()) is not None:
                await write(context, self._response(output), STALLED_SECONDS)
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
            broken = session.failure is None
            await asyncio.shield(self._groups.leave(session, broken=broken))

    async def _read(self, session: Session, context: Context) -> None:
        try:
            while True:
                request = await context.read()
                if request is grpc.aio.EOF:
                    # Without a goodbye: the connection broke, or the member does not know better.
                    await self._groups.leave(session, broken=True)
                    return
                if isinstance(request, BadMessage):
                    raise InvalidArgument("message", request.reason)
                _settle(session, request)
                if request.leave:
                    await self._groups.leave(session, broken=False)
                    return
        except EverstateError as error:
            session.fail(error)
        except Exception:
            # Nobody else would end the stream, and the member would keep what it has.
            log.exception("requests of a member cannot be read", member=session.name)
            session.fail(InternalError())

    def _response(self, output: Output) -> pb.ConnectResponse:
        response = pb.ConnectResponse(confirmed=output.confirmed, lost=output.lost)
        if output.items:
            response.first_delivery = output.first
            convert.add_events(response.events, [item.row for item in output.items], self._names)
            response.attempts.extend(item.attempts + 1 for item in output.items)
            response.replayed.extend(item.replayed for item in output.items)
        return response


def _settle(session: Session, request: pb.ConnectRequest) -> None:
    if request.HasField("join"):
        raise InvalidArgument("join", "is only in the first request")
    named = sum(map(len, (request.acks, request.nacks, request.parks, request.extend)))
    if named > MAX_SETTLED:  # it is handled in one go
        raise InvalidArgument(
            "acks", f"{named} deliveries in one request, the limit is {MAX_SETTLED}"
        )
    if request.extend:
        session.extend(request.extend)
    if request.acks:
        session.ack(request.acks)
    for nack in request.nacks:
        if nack.retry_after_ms > MAX_RETRY_AFTER_MS:
            raise InvalidArgument(
                "nacks.retry_after_ms", f"{nack.retry_after_ms} is not within 0..86400000"
            )
        session.nack(nack.delivery, nack.reason, nack.retry_after_ms / 1000)
    for park in request.parks:
        session.park(park.delivery, park.reason)
    if request.HasField("credits"):
        if request.credits > MAX_CREDITS:
            raise InvalidArgument("credits", f"{request.credits} is not within 0..{MAX_CREDITS}")
        session.allow(request.credits)


def _ms(value: int, otherwise: int) -> timedelta:
    return timedelta(milliseconds=value or otherwise)


def _settings(message: pb.GroupSettings) -> GroupSettings:
    """Settings with defaults in the place of zeros; checks are the store's."""
    backoff_min = message.backoff_min_ms or 200
    return GroupSettings(
        tuple(message.entity_types),
        tuple(message.event_types),
        message.partitions or (1 if message.global_order else 16),
        message.global_order,
        message.entity_window or 1,
        _ms(message.ack_timeout_ms, 30_000),
        message.max_attempts or 10,
        timedelta(milliseconds=backoff_min),
        _ms(message.backoff_max_ms, max(30_000, backoff_min)),
        message.skip_parked,
        message.max_parked or 100_000,
    )


def _selection(message: pb.ParkedSelection) -> ParkedSelection:
    return ParkedSelection(
        message.all, message.entity_type, message.entity_id, message.event_type,
        tuple(message.positions), message.reason_contains,
    )  # fmt: skip


def _parked(event: ParkedEvent) -> pb.ParkedEvent:
    return pb.ParkedEvent(
        position=event.position, sequence=event.sequence, entity_type=event.entity_type,
        entity_id=event.entity_id, type=event.type, state=event.state, reason=event.reason,
        attempts=event.attempts, parked_at_us=event.parked_at_us, partition=event.partition,
    )  # fmt: skip


def group_message(group: Group) -> pb.Group:
    """The message of a group."""

    def ms(value: timedelta) -> int:
        return round(value.total_seconds() * 1000)

    s = group.settings
    return pb.Group(
        name=group.name,
        log=group.log,
        settings=pb.GroupSettings(
            entity_types=s.entity_types, event_types=s.event_types, partitions=s.partitions,
            global_order=s.global_order, entity_window=s.entity_window,
            ack_timeout_ms=ms(s.ack_timeout), max_attempts=s.max_attempts,
            backoff_min_ms=ms(s.backoff_min), backoff_max_ms=ms(s.backoff_max),
            skip_parked=s.skip_parked, max_parked=s.max_parked,
        ),
        version=group.version,
        created_at_us=group.created_at_us,
        position=group.position,
        head=group.head,
        lag_events=group.lag_events,
        lag_bytes=group.lag_bytes,
        lag_seconds=group.lag_seconds,
        parked=group.parked,
        held=group.held,
        replaying=group.replaying,
        members_total=group.members_total,
        members=[
            pb.Member(
                member_id=m.member_id, name=m.name, node=m.node, joined_at_us=m.joined_at_us,
                partitions=m.partitions,
            )
            for m in group.members
        ],
        partitions=[
            pb.Partition(
                partition=p.partition, first_slice=p.first_slice, last_slice=p.last_slice,
                watermark=p.watermark, pending=p.pending, member_id=p.member_id, epoch=p.epoch,
                parked=p.parked,
            )
            for p in group.partitions
        ],
    )  # fmt: skip
