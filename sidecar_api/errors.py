"""The error tree on the wire: google.rpc.Status with details, both ways.

One table maps each class once to a gRPC status; `from_status` rebuilds the class from the details,
so that a client raises exactly what the server raised. A house test fails on a class without a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from kernel import errors as e
from sidecar_api.generated import journal_pb2 as pb

DOMAIN = "everstate"
DETAILS_BYTES = 6_000
"""What the trailers of a unary call may hold: HTTP/2 peers accept 8 kB of headers by default."""

CODES: Mapping[type[e.EverstateError], grpc.StatusCode] = {
    e.EverstateError: grpc.StatusCode.INTERNAL,
    e.InternalError: grpc.StatusCode.INTERNAL,
    e.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    e.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.NotFound: grpc.StatusCode.NOT_FOUND,
    e.LogNotFound: grpc.StatusCode.NOT_FOUND,
    e.EntityNotFound: grpc.StatusCode.NOT_FOUND,
    e.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    e.LogExists: grpc.StatusCode.ALREADY_EXISTS,
    e.WrongExpectedState: grpc.StatusCode.ABORTED,
    e.EntityDeleted: grpc.StatusCode.FAILED_PRECONDITION,
    e.ForeignEvents: grpc.StatusCode.FAILED_PRECONDITION,
    e.AppendIdReused: grpc.StatusCode.FAILED_PRECONDITION,
    e.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    e.Compacted: grpc.StatusCode.OUT_OF_RANGE,
    e.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    e.Cancelled: grpc.StatusCode.CANCELLED,
    e.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.Unavailable: grpc.StatusCode.UNAVAILABLE,
    e.OutcomeUnknown: grpc.StatusCode.UNAVAILABLE,
    e.ClockSkew: grpc.StatusCode.FAILED_PRECONDITION,
    e.SchemaMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    e.UnsafeServer: grpc.StatusCode.FAILED_PRECONDITION,
    e.UnsupportedServer: grpc.StatusCode.FAILED_PRECONDITION,
    e.ConfigurationError: grpc.StatusCode.FAILED_PRECONDITION,
    e.AddressInUse: grpc.StatusCode.FAILED_PRECONDITION,
    e.FolderInUse: grpc.StatusCode.FAILED_PRECONDITION,
    e.CorruptLog: grpc.StatusCode.DATA_LOSS,
    e.LeaseLost: grpc.StatusCode.ABORTED,
    e.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    e.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    e.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    e.UnknownType: grpc.StatusCode.NOT_FOUND,
    e.Undecodable: grpc.StatusCode.FAILED_PRECONDITION,
    e.NoFold: grpc.StatusCode.NOT_FOUND,
    e.FoldFailed: grpc.StatusCode.FAILED_PRECONDITION,
}

_BY_REASON: Mapping[str, type[e.EverstateError]] = {kind.code: kind for kind in CODES}


def to_status(error: e.EverstateError, details_bytes: int | None = None) -> status_pb2.Status:
    """The status of an error; ``details_bytes`` bounds lists in the details."""
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=_short(error.message))
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN)
    details: list[Any] = [info]
    match error:
        case e.InvalidArgument():
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=_short(error.field), description=_short(error.problem)
                        )
                    ]
                )
            )
        case e.TooLarge():
            details.append(
                pb.TooLargeDetail(
                    field=error.field, actual=error.actual, limit=error.limit, unit=error.unit
                )
            )
        case e.WrongExpectedState():
            details.append(_failures(error, details_bytes))
        case e.OutOfRange():
            details.append(
                pb.OutOfRangeDetail(position=error.position, first=error.first, head=error.head)
            )
        case e.LogNotFound() | e.LogExists():
            info.metadata["log"] = error.log
        case e.EntityNotFound():
            info.metadata["entity_type"] = error.entity_type
            info.metadata["entity_id"] = error.entity_id
        case e.Compacted():
            info.metadata["entity_type"] = error.entity_type
            info.metadata["entity_id"] = error.entity_id
            info.metadata["floor"] = str(error.floor)
        case e.AppendIdReused():
            info.metadata["append_id"] = error.append_id
        case e.EntityDeleted():
            for i, (kind, name) in enumerate(error.entities[:4]):
                info.metadata[f"entity_{i}"] = f"{kind}/{name}"
        case _:
            pass
    if isinstance(error, e.Overloaded | e.Unavailable) and error.retryable:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        details.append(retry)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _short(text: str) -> str:
    return text if len(text) <= 600 else text[:597] + "…"


def _failures(
    error: e.WrongExpectedState, details_bytes: int | None
) -> pb.WrongExpectedStateDetail:
    detail = pb.WrongExpectedStateDetail(failures_total=len(error.failures))
    room = details_bytes or 1 << 30
    for failed in error.failures:
        expected = (
            pb.Expected(exists=True)
            if failed.expected == "exists"
            else pb.Expected(sequence=int(failed.expected))
        )
        check = pb.FailedCheck(
            entity_type=failed.entity_type,
            entity_id=failed.entity_id,
            expected=expected,
            actual_sequence=failed.actual,
        )
        room -= check.ByteSize() + 4
        if room < 0:
            break
        detail.failures.append(check)
    return detail


def from_status(status: status_pb2.Status) -> e.EverstateError:
    """The error of a status that an Everstate server made."""
    info: error_details_pb2.ErrorInfo | None = None
    parts: dict[str, Any] = {}
    for packed in status.details:
        name = packed.TypeName()
        kind = _DETAILS.get(name)
        if kind is not None:
            message = kind()
            packed.Unpack(message)
            parts[name] = message
            if isinstance(message, error_details_pb2.ErrorInfo):
                info = message
    if info is None or info.domain != DOMAIN:
        return from_code(status.code, status.message)
    kind_ = _BY_REASON.get(info.reason, e.InternalError)
    return _rebuild(kind_, status.message, info, parts)


_DETAILS: Mapping[str, type[Any]] = {
    "google.rpc.ErrorInfo": error_details_pb2.ErrorInfo,
    "google.rpc.BadRequest": error_details_pb2.BadRequest,
    "google.rpc.RetryInfo": error_details_pb2.RetryInfo,
    "everstate.journal.v1.TooLargeDetail": pb.TooLargeDetail,
    "everstate.journal.v1.WrongExpectedStateDetail": pb.WrongExpectedStateDetail,
    "everstate.journal.v1.OutOfRangeDetail": pb.OutOfRangeDetail,
}


def _rebuild(
    kind: type[e.EverstateError],
    message: str,
    info: error_details_pb2.ErrorInfo,
    parts: Mapping[str, Any],
) -> e.EverstateError:
    retry = parts.get("google.rpc.RetryInfo")
    after: timedelta | None = retry.retry_delay.ToTimedelta() if retry is not None else None
    if kind is e.InvalidArgument and "google.rpc.BadRequest" in parts:
        violation = parts["google.rpc.BadRequest"].field_violations[0]
        return e.InvalidArgument(violation.field, violation.description)
    if kind is e.TooLarge and "everstate.journal.v1.TooLargeDetail" in parts:
        large = parts["everstate.journal.v1.TooLargeDetail"]
        return e.TooLarge(large.field, large.actual, large.limit, large.unit)
    if kind is e.WrongExpectedState and "everstate.journal.v1.WrongExpectedStateDetail" in parts:
        detail = parts["everstate.journal.v1.WrongExpectedStateDetail"]
        return e.WrongExpectedState(
            tuple(
                e.FailedCheck(
                    check.entity_type,
                    check.entity_id,
                    "exists"
                    if check.expected.WhichOneof("state") == "exists"
                    else check.expected.sequence,
                    check.actual_sequence,
                )
                for check in detail.failures
            )
        )
    if kind is e.OutOfRange and "everstate.journal.v1.OutOfRangeDetail" in parts:
        bounds = parts["everstate.journal.v1.OutOfRangeDetail"]
        return e.OutOfRange(bounds.position, bounds.first, bounds.head)
    if kind is e.LogNotFound or kind is e.LogExists:
        return kind(info.metadata["log"])
    if kind is e.EntityNotFound:
        return e.EntityNotFound(info.metadata["entity_type"], info.metadata["entity_id"])
    if kind is e.Compacted:
        known = info.metadata
        return e.Compacted(known["entity_type"], known["entity_id"], int(known["floor"] or 0))
    if kind is e.AppendIdReused:
        return e.AppendIdReused(info.metadata["append_id"])
    if kind is e.EntityDeleted:
        names = [info.metadata[key].split("/", 1) for key in sorted(info.metadata)]
        return e.EntityDeleted(tuple((n[0], n[-1]) for n in names))
    if kind is e.Overloaded:
        return e.Overloaded(message, after or timedelta(milliseconds=100))
    if kind is e.Unavailable and after is not None:
        return e.Unavailable(message, after)
    return kind(message) if kind not in _NEEDS_FIELDS else e.EverstateError(message)


_NEEDS_FIELDS = (e.InvalidArgument, e.TooLarge, e.WrongExpectedState, e.OutOfRange, e.ForeignEvents)


def from_code(code: int, message: str) -> e.EverstateError:
    """The nearest error of a status without our details: gRPC itself, a proxy, another server."""
    match code:
        case 1:
            return e.Cancelled(message)
        case 3:
            return e.InvalidArgument("request", message)
        case 4:
            return e.DeadlineExceeded(message)
        case 5:
            return e.NotFound(message)
        case 8:
            return e.Overloaded(message)
        case 12:
            return e.ConfigurationError(f"the server does not know this call: {message}")
        case 14:
            return e.Unavailable(message)
        case _:
            return e.InternalError(message)


def to_error(error: grpc.aio.AioRpcError) -> e.EverstateError:
    """The error of the tree that a failed call stands for."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what it needs of a call
    except ValueError:
        status = None
    if status is not None:
        return from_status(status)
    return from_code(error.code().value[0], error.details() or error.code().name)
