"""Consumer groups from Python: being a member, and managing groups.

async with client.groups.join("mailer", name="worker-1", credit=100) as member:
    async for delivery in member:
        await send_mail(delivery.event)
        await delivery.ack()
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from journal.groups.model import (
    Group,
    GroupChange,
    GroupMember,
    GroupPage,
    GroupPartition,
    GroupSettings,
    ParkedCount,
    ParkedEvent,
    ParkedPage,
    ParkedSelection,
)
from journal.model import EventView
from kernel.errors import (
    Cancelled,
    DeadlineExceeded,
    EverstateError,
    InternalError,
    InvalidArgument,
    Overloaded,
    Unavailable,
)
from sidecar_api.errors import to_error
from sidecar_api.generated import group_pb2 as pb

if TYPE_CHECKING:
    from sidecar_api.client.client import Client

SERVICE = "/everstate.group.v1.GroupService/"

LEAVE_SECONDS = 10.0


class GroupDelivery:
    """An event that the member has until it settles it.

    The settling methods send at once and may be awaited: True when it is on disk (an acked event is
    never delivered again), False when it came too late and the event is or was delivered again.
    """

    __slots__ = ("_member", "attempt", "event", "number", "replayed")

    def __init__(
        self, member: Member, number: int, event: EventView, attempt: int, replayed: bool
    ) -> None:
        self._member = member
        self.number = number
        self.event = event
        self.attempt = attempt
        self.replayed = replayed

    def ack(self) -> asyncio.Future[bool]:
        """It is done."""
        return self._member._settle(self, "acks", self.number)  # noqa: SLF001 - one module, one class in two parts

    def nack(
        self, reason: str = "", *, retry_after: timedelta | None = None
    ) -> asyncio.Future[bool]:
        """It failed: again not before ``retry_after`` (none: the group's backoff)."""
        ms = 0 if retry_after is None else max(1, round(retry_after.total_seconds() * 1000))
        message = pb.Nack(delivery=self.number, reason=reason[:2_000], retry_after_ms=ms)
        return self._member._settle(self, "nacks", message)  # noqa: SLF001

    def park(self, reason: str) -> asyncio.Future[bool]:
        """It is put aside with a reason."""
        message = pb.Park(delivery=self.number, reason=reason[:2_000])
        return self._member._settle(self, "parks", message)  # noqa: SLF001

    def extend(self) -> None:
        """It is still being worked on: its time begins anew."""
        self._member._send("extend", self, self.number)  # noqa: SLF001

    @property
    def lost(self) -> bool:
        """Whether it is not this member's any more: to settle it is of no effect."""
        return not self._member._has(self)  # noqa: SLF001


class Member:
    """A member of a group; iterate over it for deliveries. Connects again by itself.

    What was out when a connection broke is lost to this member and will be delivered again. While
    deliveries wait here and others are taken, their ack timeout is put off; it runs from when they
    are taken, or when none has been for as long as it.
    """

    def __init__(
        self, client: Client, group: str, name: str, credit: int, retry_for: timedelta
    ) -> None:
        self._client = client
        self._group = group
        self._name = name
        self._credits = credit
        self._retry_for = retry_for.total_seconds()
        self.member_id = ""
        self._out: dict[int, GroupDelivery] = {}
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._ready: deque[GroupDelivery] = deque()
        self._request = pb.ConnectRequest()
        self._arrived = asyncio.Event()
        self._unsent = asyncio.Event()
        self._failure: EverstateError | None = None
        self._leaving = False
        self._asked_at = 0.0
        self.joined = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Says goodbye: what was settled is confirmed, what is out goes to others at once."""
        self._leaving = True
        self._unsent.set()
        self._arrived.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=LEAVE_SECONDS)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._lose_all()

    async def abandon(self) -> None:
        """Goes without a word, as a crash would: what is out counts as failed."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._leaving = True
        self._arrived.set()
        self._lose_all()

    def allow(self, credit: int) -> None:
        """How many deliveries may be out from now on; 0 pauses."""
        self._credits = credit
        self._request.credits = credit
        self._unsent.set()

    def __aiter__(self) -> AsyncIterator[GroupDelivery]:
        return self

    async def __anext__(self) -> GroupDelivery:
        """The next delivery.

        Raises:
            NotFound: there is no such group (any more). Unavailable: no node could be reached for
            ``retry_for``.

        """
        self._asked_at = asyncio.get_running_loop().time()
        while True:
            while self._ready:
                delivery = self._ready.popleft()
                if self._has(delivery):
                    delivery.extend()  # its time begins now, not when it came
                    return delivery
            if self._failure is not None:
                raise self._failure
            if self._leaving:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    # Settling

    def _has(self, delivery: GroupDelivery) -> bool:
        return self._out.get(delivery.number) is delivery

    def _settle(self, delivery: GroupDelivery, field: str, value: object) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not self._has(delivery):
            future.set_result(False)
            return future
        del self._out[delivery.number]
        self._waiting[delivery.number] = future
        getattr(self._request, field).append(value)
        self._unsent.set()
        return future

    def _send(self, field: str, delivery: GroupDelivery, value: object) -> None:
        if self._has(delivery):
            getattr(self._request, field).append(value)
            self._unsent.set()

    def _lose_all(self) -> None:
        self._out.clear()
        self._ready.clear()
        self._request = pb.ConnectRequest()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_result(False)

    # The stream

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failing_since: float | None = None
        pause = 0.02
        while True:
            self.joined.clear()
            try:
                await self._stream()
                return
            except (Unavailable, Overloaded, DeadlineExceeded, Cancelled, InternalError) as error:
                was_joined = self.joined.is_set()
                self._lose_all()
                now = loop.time()
                if was_joined or failing_since is None:
                    failing_since, pause = now, 0.02
                if self._leaving or now - failing_since > self._retry_for:
                    self._fail(error)
                    return
            except EverstateError as error:
                self._fail(error)
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
            pause = min(pause * 2, 1.0)

    def _fail(self, error: EverstateError) -> None:
        self.joined.clear()
        self._lose_all()
        self._failure = error
        self._arrived.set()

    async def _stream(self) -> None:
        call = self._client.stream_call(
            SERVICE + "Connect", pb.ConnectRequest, pb.ConnectResponse
        )()
        tasks: list[asyncio.Task[None]] = []
        try:
            join = pb.Join(group=self._group, name=self._name, credits=self._credits)
            await call.write(pb.ConnectRequest(join=join))
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    break
                if response.HasField("joined"):
                    self.member_id = response.joined.member_id
                    self.joined.set()
                    timeout = response.joined.group.settings.ack_timeout_ms / 1000
                    tasks = [
                        asyncio.create_task(self._write(call)),
                        asyncio.create_task(self._put_off(timeout)),
                    ]
                self._read(response)
        except (ValueError, TypeError) as error:
            raise InvalidArgument("join", f"cannot be sent: {error}") from None
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None
        except asyncio.InvalidStateError:  # the stream had ended before the write
            raise Unavailable("the stream has ended") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()
        if not self._leaving:
            raise Unavailable("the stream has ended")

    async def _put_off(self, timeout: float) -> None:
        """Asks for more time for what waits here, while deliveries are taken: a handler that hangs
        must not keep what waits behind it.
        """
        loop = asyncio.get_running_loop()
        self._asked_at = loop.time()
        while True:
            await asyncio.sleep(timeout / 3)
            if loop.time() - self._asked_at < timeout:
                for delivery in self._ready:
                    delivery.extend()

    async def _write(self, call: Any) -> None:
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            while True:
                await self._unsent.wait()
                self._unsent.clear()
                request, self._request = self._request, pb.ConnectRequest()
                request.leave = self._leaving
                await call.write(request)
                if request.leave:
                    await call.done_writing()
                    return

    def _read(self, response: pb.ConnectResponse) -> None:
        for number in response.confirmed:
            self._resolve(number, True)
        for number in response.lost:
            self._resolve(number, False)
        numbers = range(response.first_delivery, response.first_delivery + len(response.events))
        for number, event, attempt, replayed in zip(
            numbers, response.events, response.attempts, response.replayed, strict=True
        ):
            delivery = GroupDelivery(self, number, event, attempt, replayed)
            self._out[number] = delivery
            self._ready.append(delivery)
        if response.events:
            self._arrived.set()

    def _resolve(self, number: int, confirmed: bool) -> None:
        self._out.pop(number, None)
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(confirmed)


class Groups:
    """Managing groups; `Client.groups`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def join(
        self, group: str, *, name: str = "", credit: int = 100, retry_for: timedelta | None = None
    ) -> Member:  # fmt: skip
        """A member of a group, to be entered with ``async with``.

        At most ``credit`` deliveries are out unsettled. ``retry_for``: how long a node is looked
        for before the iteration raises; none: the client's setting.
        """
        return Member(
            self._client, group, name, credit, retry_for or self._client.settings.retry_for
        )

    async def create(
        self, name: str, settings: GroupSettings | None = None, *, log: str = "",
        from_position: int = 0,
    ) -> Group:  # fmt: skip
        """Makes a group that begins at a position (0: the beginning, `FROM_NOW`: after the head).

        Raises:
            AlreadyExists, LogNotFound, OutOfRange, InvalidArgument.

        """
        s = settings or GroupSettings()
        partitions = 1 if s.global_order and s.partitions == GroupSettings().partitions else None
        request = _message(
            pb.CreateGroupRequest,
            name=name,
            log=log or self._client.target.log,
            from_position=from_position,
            settings=_message(
                pb.GroupSettings,
                entity_types=s.entity_types, event_types=s.event_types,
                partitions=partitions or s.partitions, global_order=s.global_order,
                entity_window=s.entity_window, ack_timeout_ms=_ms(s.ack_timeout),
                max_attempts=s.max_attempts, backoff_min_ms=_ms(s.backoff_min),
                backoff_max_ms=_ms(s.backoff_max), skip_parked=s.skip_parked,
                max_parked=s.max_parked,
            ),
        )  # fmt: skip
        return to_group(await self._call("CreateGroup", pb.Group, request, retried=False))

    async def update(self, name: str, change: GroupChange, *, version: int = 0) -> Group:
        """Changes what is not None. Raises `NotFound`, `Conflict` when it has another version."""
        request = _message(pb.UpdateGroupRequest, name=name, version=version)
        for field in ("entity_types", "event_types"):
            types = getattr(change, field)
            if types is not None:
                getattr(request, field).CopyFrom(pb.TypeFilter(types=types))
        for field in ("ack_timeout", "backoff_min", "backoff_max"):
            value = getattr(change, field)
            if value is not None:
                setattr(request, f"{field}_ms", _ms(value))
        for field in ("entity_window", "max_attempts", "skip_parked", "max_parked"):
            value = getattr(change, field)
            if value is not None:
                try:
                    setattr(request, field, value)
                except (ValueError, TypeError) as error:
                    raise InvalidArgument(field, f"cannot be sent: {error}") from None
        return to_group(await self._call("UpdateGroup", pb.Group, request, retried=not version))

    async def delete(self, name: str) -> int:
        """Deletes a group; how many parked events went with it. Raises `NotFound`."""
        request = _message(pb.DeleteGroupRequest, name=name)
        reply = await self._call("DeleteGroup", pb.DeleteGroupResponse, request, retried=False)
        return int(reply.parked)

    async def get(self, name: str) -> Group:
        """A group with its members and partitions. Raises `NotFound`."""
        request = _message(pb.GetGroupRequest, name=name)
        return to_group(await self._call("GetGroup", pb.Group, request))

    async def list_page(self, *, page_size: int = 100, page_token: str = "") -> GroupPage:
        """A page of groups by name."""
        request = _message(pb.ListGroupsRequest, page_size=page_size, page_token=page_token)
        page = await self._call("ListGroups", pb.ListGroupsResponse, request)
        return GroupPage(tuple(map(to_group, page.groups)), page.next_page_token)

    async def seek(self, name: str, position: int) -> Group:
        """Goes on at a position (0: the beginning, `FROM_NOW`: after the head)."""
        request = _message(pb.SeekRequest, group=name, position=position)
        return to_group(await self._call("Seek", pb.Group, request, retried=False))

    async def parked(
        self, name: str, selection: ParkedSelection | None = None, *, page_size: int = 100,
        page_token: str = "",
    ) -> ParkedPage:  # fmt: skip
        """A page of the events that were put aside, by position."""
        request = _message(
            pb.ListParkedRequest, group=name, selection=_selection(selection or ParkedSelection()),
            page_size=page_size, page_token=page_token,
        )  # fmt: skip
        page = await self._call("ListParked", pb.ListParkedResponse, request)
        events = tuple(
            ParkedEvent(
                e.position, e.sequence, e.entity_type, e.entity_id, e.type, e.state, e.reason,
                e.attempts, e.parked_at_us, e.partition,
            )
            for e in page.events
        )  # fmt: skip
        return ParkedPage(events, page.next_page_token)

    async def replay(
        self, name: str, selection: ParkedSelection, *, rate: float = 0.0, dry_run: bool = False
    ) -> ParkedCount:
        """Delivers parked events again, ``rate`` a second (0: at once)."""
        request = _message(
            pb.ReplayParkedRequest, group=name, selection=_selection(selection), rate=rate,
            dry_run=dry_run,
        )  # fmt: skip
        reply = await self._call("ReplayParked", pb.ReplayParkedResponse, request, retried=False)
        return ParkedCount(reply.events, reply.entities, reply.held)

    async def discard(
        self, name: str, selection: ParkedSelection, *, dry_run: bool = False
    ) -> ParkedCount:
        """Takes events off the list for good."""
        request = _message(
            pb.DiscardParkedRequest, group=name, selection=_selection(selection), dry_run=dry_run
        )
        reply = await self._call("DiscardParked", pb.DiscardParkedResponse, request)
        return ParkedCount(reply.events, reply.entities, reply.held)

    async def _call(
        self, method: str, response: type[Any], request: Any, *, retried: bool = True
    ) -> Any:
        return await self._client.unary_call(SERVICE + method, response, request, retried=retried)


def _message(kind: Any, **fields: object) -> Any:
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise InvalidArgument("request", f"cannot be sent: {error}") from None


def _ms(value: timedelta) -> int:
    return round(value.total_seconds() * 1000)


def _selection(selection: ParkedSelection) -> Any:
    return _message(
        pb.ParkedSelection, all=selection.all, entity_type=selection.entity_type,
        entity_id=selection.entity_id, event_type=selection.event_type,
        positions=selection.positions, reason_contains=selection.reason_contains,
    )  # fmt: skip


def to_group(message: pb.Group) -> Group:
    """The model's group; its id is the server's own."""
    s = message.settings
    return Group(
        0,
        message.name,
        message.log,
        GroupSettings(
            tuple(s.entity_types), tuple(s.event_types), s.partitions, s.global_order,
            s.entity_window, timedelta(milliseconds=s.ack_timeout_ms), s.max_attempts,
            timedelta(milliseconds=s.backoff_min_ms), timedelta(milliseconds=s.backoff_max_ms),
            s.skip_parked, s.max_parked,
        ),
        message.version,
        message.created_at_us,
        message.position,
        message.head,
        message.lag_bytes,
        message.lag_seconds,
        message.parked,
        message.held,
        message.replaying,
        message.members_total,
        tuple(
            GroupMember(m.member_id, m.name, m.node, m.joined_at_us, m.partitions)
            for m in message.members
        ),
        tuple(
            GroupPartition(
                p.partition, p.first_slice, p.last_slice, p.watermark, p.pending, p.member_id,
                p.epoch, p.parked,
            )
            for p in message.partitions
        ),
    )  # fmt: skip
