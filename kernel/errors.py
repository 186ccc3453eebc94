"""The one error tree of Everstate.

Every failure that crosses a room's border is a class of this module. A class knows its stable
``code``, whether the same call may simply be sent again (``retryable``), and a ``hint`` that tells
a tired reader what to do next. `sidecar_api.errors` maps each class once to a gRPC status, the HTTP
API maps it once to problem+json, and the CLI maps it to an exit code; house tests fail on a class
that any of them forgot. Driver errors never leave a ``store`` or `kernel.database`.

The message is safe to show and to log: it names fields, limits, ids and numbers, never payloads,
passwords or whole connection strings.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar


class EverstateError(Exception):
    """Something went wrong in Everstate."""

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False
    hint: ClassVar[str] = "this is a bug in Everstate: please report it with the server's log"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (self.__doc__ or self.code).strip().splitlines()[0]
        super().__init__(self.message)


class InternalError(EverstateError):
    """An internal error; the server's log has the details."""


class InvalidArgument(EverstateError):
    """A field of the request is not valid."""

    code = "INVALID_ARGUMENT"
    hint = "correct the named field and send the request again"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class TooLarge(EverstateError):
    """A part of the request is over its limit."""

    code = "TOO_LARGE"
    hint = "split the request, or raise the named limit on the server"

    def __init__(self, field: str, actual: int, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{field}: {actual} {unit}, the limit is {limit}")
        self.field = field
        self.actual = actual
        self.limit = limit
        self.unit = unit


class NotFound(EverstateError):
    """What was asked for does not exist."""

    code = "NOT_FOUND"
    hint = "check the name; lists show what there is"


class LogNotFound(NotFound):
    """There is no such log."""

    code = "LOG_NOT_FOUND"
    hint = "`everstate log list` shows the logs, `everstate log create` makes one"

    def __init__(self, log: str) -> None:
        super().__init__(f"there is no log {log!r}")
        self.log = log


class EntityNotFound(NotFound):
    """There is no such entity."""

    code = "ENTITY_NOT_FOUND"
    hint = "`everstate entity list` shows the entities of a type"

    def __init__(self, entity_type: str, entity_id: str) -> None:
        super().__init__(f"there is no entity {entity_type}/{entity_id}")
        self.entity_type = entity_type
        self.entity_id = entity_id


class AlreadyExists(EverstateError):
    """It exists already."""

    code = "ALREADY_EXISTS"
    hint = "choose another name, or use the one that exists"


class LogExists(AlreadyExists):
    """A log of this name exists already."""

    code = "LOG_EXISTS"

    def __init__(self, log: str) -> None:
        super().__init__(f"the log {log!r} exists already")
        self.log = log


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """One entity that was not in the expected state.

    ``expected`` is an exact sequence number (0: no entity), or ``"exists"``. ``actual`` is the
    entity's last sequence number, 0 when there is no such entity.
    """

    entity_type: str
    entity_id: str
    expected: int | str
    actual: int

    def __str__(self) -> str:
        def say(state: int | str) -> str:
            return (
                "no entity"
                if state == 0
                else ("an existing entity" if state == "exists" else f"sequence {state}")
            )

        return (
            f"{self.entity_type}/{self.entity_id}: "
            f"expected {say(self.expected)}, found {say(self.actual)}"
        )


class WrongExpectedState(EverstateError):
    """An entity is not in the state that the append expects; nothing was written."""

    code = "WRONG_EXPECTED_STATE"
    hint = "load the entity again, decide again, append again"

    def __init__(self, failures: tuple[FailedCheck, ...]) -> None:
        super().__init__("; ".join(map(str, failures)))
        self.failures = failures


class EntityDeleted(EverstateError):
    """The entity was deleted and takes no more events; nothing was written."""

    code = "ENTITY_DELETED"
    hint = "a deleted one can be undeleted, a tombstoned one never: use another entity id then"

    def __init__(self, entities: tuple[tuple[str, str], ...]) -> None:
        names = ", ".join(f"{kind}/{name}" for kind, name in entities)
        super().__init__(f"deleted: {names}")
        self.entities = entities


class ForeignEvents(EverstateError):
    """An entity holds other events than the ones being imported; they were not written."""

    code = "FOREIGN_EVENTS"
    hint = "import into another log, or take the entity out of the file"

    def __init__(self, entity_type: str, entity_id: str, finding: str) -> None:
        super().__init__(f"{entity_type}/{entity_id}: {finding}")
        self.entity_type = entity_type
        self.entity_id = entity_id


class AppendIdReused(EverstateError):
    """The append id was used before for another content; nothing was written."""

    code = "APPEND_ID_REUSED"
    hint = "make a fresh UUIDv7 for every new append; repeat one only to retry the very same append"

    def __init__(self, append_id: str) -> None:
        super().__init__(f"append_id {append_id} was used before for another content")
        self.append_id = append_id


class OutOfRange(EverstateError):
    """The position is outside of what the log holds."""

    code = "OUT_OF_RANGE"
    hint = "read from a position between first and head + 1"

    def __init__(self, position: int, first: int, head: int) -> None:
        super().__init__(f"position {position} is out of range: first {first}, head {head}")
        self.position = position
        self.first = first
        self.head = head


class Compacted(EverstateError):
    """Events that the load needs were compacted away: the entity begins at its floor now."""

    code = "COMPACTED"
    hint = (
        "ask for its floor or later (a load: without ignore_snapshot); undo the compaction to have"
        " earlier ones back"
    )

    def __init__(self, entity_type: str, entity_id: str, floor: int) -> None:
        super().__init__(
            f"{entity_type}/{entity_id}: events below the floor {floor} are compacted away"
        )
        self.entity_type = entity_type
        self.entity_id = entity_id
        self.floor = floor


class DeadlineExceeded(EverstateError):
    """The deadline passed before the work was done."""

    code = "DEADLINE_EXCEEDED"
    hint = "allow more time; what was asked may yet be done: look, or retry it with the same ids"


class Cancelled(EverstateError):
    """The caller gave up."""

    code = "CANCELLED"
    hint = "nothing to do"


class Overloaded(EverstateError):
    """The server has as much work as it may hold; nothing was written."""

    code = "OVERLOADED"
    retryable = True
    hint = "wait as long as told, then send it again"

    def __init__(self, message: str, retry_after: timedelta = timedelta(milliseconds=100)) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(EverstateError):
    """The server or its database cannot be reached now; nothing was written."""

    code = "UNAVAILABLE"
    retryable = True
    hint = "wait as long as told, then send it again"

    def __init__(
        self, message: str | None = None, retry_after: timedelta = timedelta(milliseconds=250)
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutcomeUnknown(Unavailable):
    """The connection broke before the reply: the append may or may not have been written."""

    code = "OUTCOME_UNKNOWN"
    retryable = False
    hint = "retry with the same append id or event ids: a retry that finds it written says so"


class ClockSkew(EverstateError):
    """The clocks of node and database differ by more than is safe; nothing was written."""

    code = "CLOCK_SKEW"
    hint = "set both clocks by NTP; recorded_at never goes backwards, so a wrong clock would stay"


class SchemaMismatch(EverstateError):
    """The database has another schema version than this program needs."""

    code = "SCHEMA_MISMATCH"
    hint = "run `everstate migrate` with the newest version that runs against this database"


class UnsafeServer(EverstateError):
    """The database server is configured so that acknowledged events could be lost."""

    code = "UNSAFE_SERVER"
    hint = "switch fsync and full_page_writes on"


class UnsupportedServer(EverstateError):
    """The database server's version is not supported."""

    code = "UNSUPPORTED_SERVER"
    hint = "use PostgreSQL 15, 16, 17 or 18"


class ConfigurationError(EverstateError):
    """A setting is wrong."""

    code = "CONFIGURATION"
    hint = "`everstate COMMAND --help` names the settings and their defaults"


class AddressInUse(EverstateError):
    """The port is taken by another program."""

    code = "ADDRESS_IN_USE"
    hint = "stop the other program or choose another port"


class FolderInUse(EverstateError):
    """The folder belongs to another running `everstate dev`, or is not usable."""

    code = "FOLDER_IN_USE"
    hint = "stop the other one, or name another folder in EVERSTATE_DEV_DIR"


class CorruptLog(EverstateError):
    """The log breaks one of its invariants."""

    code = "CORRUPT_LOG"
    hint = "stop writing, keep the database as it is, run `everstate log verify`"


class LeaseLost(EverstateError):
    """Another process has taken over this work; nothing of it was committed here."""

    code = "LEASE_LOST"
    hint = "nothing to do: the other process goes on where the last commit was"


class Unauthenticated(EverstateError):
    """The caller is not known: no token, or one that is unknown or has expired."""

    code = "UNAUTHENTICATED"
    hint = "set EVERSTATE_TOKEN or EVERSTATE_TOKEN_FILE to a token that is valid"


class PermissionDenied(EverstateError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"
    hint = "ask for a token of a higher role: viewer, operator, admin"


class Conflict(EverstateError):
    """The thing is in a state that does not allow this; nothing was changed."""

    code = "CONFLICT"
    hint = "look at it again, then decide again"


class UnknownType(NotFound):
    """No descriptor of a protobuf message is registered, so its payload cannot be read."""

    code = "UNKNOWN_TYPE"
    hint = "register its descriptor: `everstate descriptor add FILE`"


class Undecodable(EverstateError):
    """A payload is not what its type and content type say, or an upcaster failed on it."""

    code = "UNDECODABLE"
    hint = "the stored bytes stay as they are: correct the descriptor, the upcaster or the writer"


class NoFold(NotFound):
    """No fold is known for the entity type, so nothing can be said of the state of its entities."""

    code = "NO_FOLD"
    hint = "write a fold and name its module under `folds` in everstate.toml: docs/how-to/folds.md"


class FoldFailed(EverstateError):
    """A fold failed on an event or a snapshot; the stored bytes stay as they are."""

    code = "FOLD_FAILED"
    hint = "correct the fold, give it the next version, and start workers and admin anew"
