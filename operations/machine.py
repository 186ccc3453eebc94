"""The arrows between the states of an operation. Pure: a row and a time in, a row out.

docs/adr/0015-operations.md has the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from kernel.errors import Conflict, InvalidArgument
from kernel.principals import Principal
from operations.model import ACTIVE, OperationRow, State

_UNDOABLE = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.REVIEW})


def check_digest(row: OperationRow, digest: str) -> None:
    """Refuses to apply another plan than the one that was looked at.

    Raises:
        Conflict: it is another digest.

    """
    if digest != row.digest:
        raise Conflict(f"{row.id} has another digest: it is not the plan that you looked at")


def applied_before(row: OperationRow) -> OperationRow:
    """A row that is no plan any more: as it is, when it was applied.

    Raises:
        Conflict: it can never be applied.

    """
    match row.state:
        case State.EXPIRED:
            raise Conflict(f"{row.id} has expired; plan anew")
        case State.REVIEW:
            raise Conflict(f"{row.id}: too much has changed since the plan; plan anew")
        case State.CANCELLED:
            raise Conflict(f"{row.id} was cancelled; plan anew")
        case _:
            return row


def check_typed(row: OperationRow, typed: str, otherwise: str) -> None:
    """Refuses an apply that does not repeat what the plan asks to be typed. ``otherwise``: what is
    asked for where the policy is younger than the plan; empty: nothing.

    Raises:
        InvalidArgument: something else was typed.

    """
    asked = str(row.plan.get("typed") or "") or otherwise
    if asked and typed != asked:
        raise InvalidArgument("typed", f"type {asked!r} to apply this plan")


def check_confirmed(row: OperationRow, *, confirmed: bool) -> None:
    """Refuses an apply that does not confirm what the plan says must be.

    Raises:
        Conflict: it does not; names what.

    """
    codes = row.plan.get("confirmations") or ()
    if codes and not confirmed:
        raise Conflict(
            f"{row.id} must be confirmed ({', '.join(codes)}): read its warnings, then apply it"
            " with confirmed (--confirm)"
        )


def applied(
    row: OperationRow, now: datetime, reason: str, by: Principal, *, second: bool, empty: bool
) -> OperationRow:
    """A plan that somebody applies in time. ``second``: policy wants two persons; ``empty``: there
    is nothing to do. The same person once more changes nothing: it goes on waiting.
    """
    if row.state is State.AWAITING:
        if by.identity == row.applied_key:
            return row
        return replace(row, state=State.QUEUED, seconded_by=by.name, seconded_at=now)
    row = replace(row, applied_by=by.name, applied_key=by.identity, applied_at=now, reason=reason)
    if empty:
        return replace(row, state=State.DONE, started_at=now, finished_at=now)
    return replace(row, state=State.AWAITING if second else State.QUEUED)


def paused(row: OperationRow, *, pausable: bool) -> OperationRow:
    """A row that is to stand still. ``pausable``: of a kind that can.

    Raises:
        Conflict: it is not under way, or cannot be paused.

    """
    if row.state is State.PAUSED or (row.state in ACTIVE and row.wish == "pause"):
        return row
    if row.state not in ACTIVE:
        raise Conflict(f"{row.id} is {row.state}; only what is under way can be paused")
    if row.wish == "cancel":
        raise Conflict(f"{row.id} is being cancelled")
    if not pausable and row.started_at is not None and row.state is not State.UNDOING:
        raise Conflict(f"{row.id}: {row.kind} cannot be paused; cancel it, or let it end")
    if row.state is State.QUEUED:
        return replace(row, state=State.PAUSED, waits="")
    return replace(row, wish="pause")


def resumed(row: OperationRow) -> OperationRow:
    """A row that is to go on.

    Raises:
        Conflict: it is not paused, nor about to be.

    """
    if row.state is State.PAUSED:
        return replace(row, state=_going(row))
    if row.state in ACTIVE and row.wish != "cancel":
        return replace(row, wish="")
    raise Conflict(
        f"{row.id} is being cancelled" if row.wish else f"{row.id} is {row.state}, not paused"
    )


def _going(row: OperationRow) -> State:
    return State.UNDOING if row.undone_by is not None else State.QUEUED


def cancelled(row: OperationRow, now: datetime, *, told: bool) -> OperationRow:
    """A row that is to end. ``told``: a worker has to tell another room (a task does).

    Raises:
        Conflict: it has ended.

    """
    if row.state is State.CANCELLED or (row.state in ACTIVE and row.wish == "cancel"):
        return row
    if row.state in (State.PLANNED, State.AWAITING):
        return ended(row, State.CANCELLED, now)
    if row.state not in ACTIVE:
        raise Conflict(f"{row.id} is {row.state}: there is nothing to cancel")
    if row.state in (State.QUEUED, State.PAUSED) and (not told or row.started_at is None):
        # Nobody works on it: whoever took it in this moment looks again before acting.
        return ended(row, State.CANCELLED, now)
    return replace(
        row, wish="cancel", state=_going(row) if row.state is State.PAUSED else row.state
    )


def ended(
    row: OperationRow,
    state: State,
    now: datetime,
    error: Mapping[str, Any] | None = None,
) -> OperationRow:
    """A row that ends. What is done may be undone from now on, for as long as the plan said; an
    undo that was stopped, or has left something, has the time it had.
    """
    until = row.undo_until
    if row.undone_by is None:
        seconds = int(row.plan.get("undo_seconds") or 0)
        acted = row.started_at is not None and state in _UNDOABLE
        can = acted and seconds > 0 and bool(row.plan.get("undoable"))
        until = now + timedelta(seconds=seconds) if can else None
    elif state is State.UNDONE and row.undone >= row.done:
        until = None
    return replace(
        row, state=state, wish="", waits="", finished_at=now, undo_until=until, error=error,
        retrying=False,
    )  # fmt: skip


def undoing(
    row: OperationRow, now: datetime, reason: str, by: Principal, *, counted: bool, second: bool
) -> OperationRow:
    """A row that is to be taken back. ``counted``: its items are (an entity kind); ``second``:
    policy wants two persons for its kind.

    Raises:
        Conflict: it is not over, too late, not undoable, nothing was done, or the person who
            applied it may not be the one who undoes it.

    """
    if row.undone_by is not None and row.state in ACTIVE:
        return row
    left = counted and row.undo_until is not None and row.undone < row.done
    if row.state is State.UNDONE and not left:
        return row
    if row.state not in _UNDOABLE | {State.UNDONE}:
        raise Conflict(f"{row.id} is {row.state}; only what has ended can be undone")
    if row.undo_until is None:
        said = "nothing was done" if row.started_at is None else f"{row.kind} cannot be undone"
        raise Conflict(f"{row.id}: {said}")
    if now >= row.undo_until or row.items_gone:
        raise Conflict(f"{row.id} can no longer be undone: the time for it is over")
    if counted and row.done - row.undone <= 0:
        raise Conflict(f"{row.id}: nothing was done, so there is nothing to undo")
    if second and by.identity == row.applied_key:
        raise Conflict(
            f"{row.id}: policy wants two persons for {row.kind}; {by.name!r} applied it, so another"
            " one has to undo it"
        )
    return replace(
        row, state=State.UNDOING, wish="", undone_by=by.name, undo_reason=reason, error=None,
        cursor=row.items, finished_at=None, waits="",
    )  # fmt: skip


def opposed(row: OperationRow, opposite: str) -> Conflict:
    """The refusal of an undo that does what policy lets nobody do alone: it is an ``opposite``."""
    return Conflict(
        f"{row.id}: to undo it is to {opposite}, and policy wants two persons for that; plan a"
        f" {opposite!r} instead, which a second person applies too"
    )


def retrying(row: OperationRow, *, counted: bool) -> OperationRow:
    """A row whose failed items are to be tried once more, and those it did not come to.

    Raises:
        Conflict: it is not over, or nothing failed.

    """
    if row.retrying and row.state in ACTIVE:
        return row
    if row.state not in (State.DONE, State.FAILED) or row.undone_by is not None:
        raise Conflict(f"{row.id} is {row.state}; only what is done or failed can be retried")
    if not counted:
        raise Conflict(f"{row.id}: {row.kind} has nothing to retry by itself; plan anew")
    if row.items_gone:
        raise Conflict(f"{row.id}: its items are no longer kept; plan anew")
    if not row.failed and row.state is State.DONE:
        raise Conflict(f"{row.id}: nothing failed")
    return replace(
        row, state=State.QUEUED, retrying=True, cursor=0, error=None, finished_at=None,
        undo_until=None, waits="",
    )  # fmt: skip
