"""The command line: one application, one place where errors become sentences and exit codes.

Exit codes: 0 done · 1 negative finding · 2 usage or bad input · 3 not found · 4 refused or
conflict · 5 unreachable · 6 deadline · 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated

import orjson
import typer

from everstate import __version__
from everstate.commands import (
    admin,
    data,
    database,
    descriptor,
    dev,
    entity,
    group,
    guards,
    log,
    operation,
    projection,
    serve,
    snapshot,
    token,
    work,
)
from kernel import errors as e

EXIT_CODES: Mapping[type[e.EverstateError], int] = {
    e.EverstateError: 1,
    e.InternalError: 1,
    e.InvalidArgument: 2,
    e.TooLarge: 2,
    e.OutOfRange: 2,
    e.ConfigurationError: 2,
    e.NotFound: 3,
    e.LogNotFound: 3,
    e.EntityNotFound: 3,
    e.AlreadyExists: 4,
    e.LogExists: 4,
    e.WrongExpectedState: 4,
    e.EntityDeleted: 4,
    e.Compacted: 4,
    e.ForeignEvents: 4,
    e.AppendIdReused: 4,
    e.ClockSkew: 4,
    e.SchemaMismatch: 4,
    e.UnsafeServer: 4,
    e.UnsupportedServer: 4,
    e.AddressInUse: 4,
    e.FolderInUse: 4,
    e.Overloaded: 5,
    e.Unavailable: 5,
    e.OutcomeUnknown: 5,
    e.DeadlineExceeded: 6,
    e.Cancelled: 130,
    e.CorruptLog: 1,
    e.LeaseLost: 4,
    e.Unauthenticated: 4,
    e.PermissionDenied: 4,
    e.Conflict: 4,
    e.UnknownType: 3,
    e.Undecodable: 4,
    e.NoFold: 3,
    e.FoldFailed: 4,
}

app = typer.Typer(
    name="everstate",
    help="Everstate: the datastore of stateful services.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"everstate {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Everstate: the datastore of stateful services."""


for room in (
    dev,
    serve,
    work,
    admin,
    database,
    data,
    log,
    entity,
    snapshot,
    group,
    descriptor,
    projection,
    operation,
    guards,
    token,
):
    room.register(app)


def complain(error: e.EverstateError, *, as_json: bool) -> int:
    """Says on standard error what went wrong; returns the exit code."""
    if as_json:
        body = {
            "code": error.code,
            "message": error.message,
            "field": getattr(error, "field", None),
            "hint": error.hint,
        }
        sys.stderr.write(orjson.dumps({"error": body}).decode() + "\n")
    else:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
    return EXIT_CODES[type(error)]


def main() -> None:
    """Runs the command line and exits."""
    as_json = "--json" in sys.argv
    # Our sentence says it; gRPC's own line about a busy port would stand beside it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app(prog_name="everstate")
    except e.EverstateError as error:
        sys.exit(complain(error, as_json=as_json))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error.
        sys.stderr.close()
        sys.exit(0)
