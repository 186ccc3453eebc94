"""The error tree: complete, documented, mapped once to gRPC and once to exit codes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from admin_ui.errors import STATUSES, answer
from everstate.cli import EXIT_CODES, complain
from kernel import errors as e
from sidecar_api.errors import CODES, DETAILS_BYTES, DOMAIN, from_code, from_status, to_status


def tree(root: type[e.EverstateError] = e.EverstateError) -> Iterator[type[e.EverstateError]]:
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


CLASSES = sorted(set(tree()), key=lambda kind: kind.__name__)

MADE: dict[type[e.EverstateError], tuple[Any, ...]] = {
    e.InvalidArgument: ("events[3].type", "is empty"),
    e.TooLarge: ("events", 1001, 1000, "events"),
    e.LogNotFound: ("nosuch",),
    e.LogExists: ("default",),
    e.EntityNotFound: ("cart", "a/b é"),
    e.WrongExpectedState: (
        (
            e.FailedCheck("cart", "a", 0, 3),
            e.FailedCheck("cart", "b/c", "exists", 0),
            e.FailedCheck("order", "é", 2**62, 1),
        ),
    ),
    e.EntityDeleted: ((("cart", "a/b"), ("order", "b")),),
    e.ForeignEvents: ("cart", "a", "its event 3 is not that of line 7"),
    e.AppendIdReused: ("018f3c5e-0000-7000-8000-000000000000",),
    e.OutOfRange: (2**40, 1, 17),
    e.Compacted: ("cart", "a/b", 12),
    e.Overloaded: ("much waits", timedelta(milliseconds=350)),
}


def one_of(kind: type[e.EverstateError]) -> e.EverstateError:
    return kind(*MADE.get(kind, ("something happened",)))


def test_the_classes_under_test_are_all_there_are() -> None:
    here = {
        kind
        for _, kind in inspect.getmembers(e, inspect.isclass)
        if issubclass(kind, e.EverstateError)
    }
    assert set(CLASSES) == here
    assert len(CLASSES) > 20


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_says_what_happened_and_what_to_do(kind: type[e.EverstateError]) -> None:
    assert kind.__doc__ is not None
    assert kind.__doc__.splitlines()[0].endswith(".")
    assert kind.hint
    assert kind.hint[0] in "`abcdefghijklmnopqrstuvwxyz"
    assert str(one_of(kind)) == one_of(kind).message != ""


def test_codes_are_unique() -> None:
    # InternalError is what callers see of an EverstateError without a class of its own.
    codes = {kind: kind.code for kind in CLASSES if kind is not e.InternalError}
    assert len(set(codes.values())) == len(codes)
    assert e.InternalError.code == e.EverstateError.code == "INTERNAL"
    for code in codes.values():
        assert code.replace("_", "").isalpha()
        assert code.isupper()


def test_a_class_without_a_message_speaks_its_docstring() -> None:
    assert e.DeadlineExceeded().message == "The deadline passed before the work was done."


def test_only_what_has_written_nothing_may_simply_be_sent_again() -> None:
    retryable = {kind for kind in CLASSES if kind.retryable}
    assert retryable == {e.Overloaded, e.Unavailable}
    assert not e.OutcomeUnknown.retryable


def test_every_class_has_one_grpc_status() -> None:
    assert set(CODES) == set(CLASSES)
    assert grpc.StatusCode.OK not in CODES.values()
    assert grpc.StatusCode.UNKNOWN not in CODES.values()


def test_every_class_has_one_http_status() -> None:
    assert set(STATUSES) == set(CLASSES)
    assert all(400 <= status < 600 for status in STATUSES.values())


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_a_problem_over_http(kind: type[e.EverstateError]) -> None:
    error = one_of(kind)
    status, headers, body = answer(error)
    said = orjson.loads(body)
    assert (said["code"], said["detail"], said["hint"]) == (kind.code, error.message, kind.hint)
    assert said["status"] == status == STATUSES[kind]
    assert said["field"] == getattr(error, "field", None)
    assert dict(headers)[b"content-type"] == b"application/problem+json"
    assert (b"retry-after" in dict(headers)) == kind.retryable
    assert (b"www-authenticate" in dict(headers)) == (status == 401)


def test_every_class_has_one_exit_code() -> None:
    assert set(EXIT_CODES) == set(CLASSES)
    assert set(EXIT_CODES.values()) == {1, 2, 3, 4, 5, 6, 130}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_survives_the_wire(kind: type[e.EverstateError]) -> None:
    error = one_of(kind)
    status = status_pb2.Status.FromString(to_status(error).SerializeToString())
    assert status.code == CODES[kind].value[0]
    assert status.message == error.message
    back = from_status(status)
    if kind is e.ForeignEvents:  # of the importer; no server raises it
        assert isinstance(back, e.EverstateError)
        return
    if kind is not e.InternalError and kind is not e.EverstateError:
        assert type(back) is kind
    assert back.code == error.code
    assert back.message == error.message
    assert vars(back) == vars(error)


def test_a_retryable_error_says_how_long_to_wait() -> None:
    for error in (e.Overloaded("x", timedelta(seconds=2)), e.Unavailable("x")):
        names = [packed.TypeName() for packed in to_status(error).details]
        assert "google.rpc.RetryInfo" in names
    assert "google.rpc.RetryInfo" not in [
        p.TypeName() for p in to_status(e.OutcomeUnknown()).details
    ]


def test_the_wait_of_an_unavailable_server_survives_the_wire() -> None:
    error = e.Unavailable("away", timedelta(seconds=3))
    back = from_status(to_status(error))
    assert isinstance(back, e.Unavailable)
    assert back.retry_after == timedelta(seconds=3)


def test_a_thousand_failed_checks_fit_into_the_trailers_of_a_unary_call() -> None:
    failures = tuple(e.FailedCheck("t" * 255, f"{n}" * 50, n, n + 1) for n in range(1000))
    status = to_status(e.WrongExpectedState(failures), DETAILS_BYTES)
    assert status.ByteSize() < 8_000
    back = from_status(status)
    assert isinstance(back, e.WrongExpectedState)
    assert 0 < len(back.failures) < 1000
    assert back.failures == failures[: len(back.failures)]
    whole = from_status(to_status(e.WrongExpectedState(failures)))
    assert isinstance(whole, e.WrongExpectedState)
    assert whole.failures == failures


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, e.Cancelled),
        (2, e.InternalError),
        (3, e.InvalidArgument),
        (4, e.DeadlineExceeded),
        (5, e.NotFound),
        (7, e.InternalError),
        (8, e.Overloaded),
        (12, e.ConfigurationError),
        (13, e.InternalError),
        (14, e.Unavailable),
    ],
)
def test_a_status_of_another_server_becomes_the_nearest_class(
    code: int, kind: type[e.EverstateError]
) -> None:
    for status in (
        status_pb2.Status(code=code, message="from a proxy"),
        status_with(code, error_details_pb2.ErrorInfo(reason="TOO_LARGE", domain="example.com")),
    ):
        back = from_status(status)
        assert type(back) is kind
        assert "from a proxy" in back.message
    assert type(from_code(code, "from a proxy")) is kind


def status_with(code: int, detail: Any) -> status_pb2.Status:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return status_pb2.Status(code=code, message="from a proxy", details=[packed])


@pytest.mark.parametrize(
    "reason", [*sorted({kind.code for kind in CLASSES}), "NEW_IN_A_LATER_VERSION"]
)
def test_details_that_are_missing_break_no_client(reason: str) -> None:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    assert isinstance(from_status(status_with(9, info)), e.EverstateError)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_line_says_error_and_hint(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complain(e.InvalidArgument("log", "is empty"), as_json=as_json) == 2
    said = capsys.readouterr().err
    assert "log: is empty" in said
    assert e.InvalidArgument.hint in said
    assert said.startswith('{"error":{' if as_json else "error: ")


@pytest.mark.parametrize(
    ("failed", "sentence"),
    [
        (e.FailedCheck("t", "a", 0, 3), "t/a: expected no entity, found sequence 3"),
        (e.FailedCheck("t", "a", 4, 0), "t/a: expected sequence 4, found no entity"),
        (e.FailedCheck("t", "a", "exists", 0), "t/a: expected an existing entity, found no entity"),
    ],
)
def test_a_failed_check_speaks_plainly(failed: e.FailedCheck, sentence: str) -> None:
    assert str(failed) == sentence
