"""Wiring of folds: what `everstate work` and `everstate admin` load of them."""

from __future__ import annotations

from pathlib import Path

import structlog

from kernel import usercode
from kernel.database import Database
from kernel.errors import ConfigurationError, EverstateError, Overloaded
from kernel.threads import Threads
from operations.kinds.base import Environment
from schemas.descriptors import Decoder
from schemas.store import DescriptorStore
from schemas.upcasters import Upcasters, from_user_code
from snapshots import fold_registry
from snapshots.folding import Folding
from snapshots.folds import FoldDefinition, Folds

log = structlog.get_logger(__name__)

LOAD_SECONDS = 20.0
"""User code that has not been imported by then is given up by the admin."""


def environment(database: Database, folds: Folds, upcasters: Upcasters) -> Environment:
    """What operations have of the user's code."""
    source = DescriptorStore(database)
    return Environment(folds=Folding(folds, lambda: Decoder(source, upcasters)))


async def lenient(database: Database, app: Path | None) -> Environment:
    """The same for a process that serves others things too: code that cannot be loaded leaves it
    without folds, and whoever asks for one is told why.
    """
    folds, upcasters = Folds(), Upcasters()
    try:
        definitions, upcasters = await Threads(1).run(lambda: _load(app), LOAD_SECONDS)
        folds = await fold_registry.checked(database, definitions)
    except (TimeoutError, Overloaded):
        folds = _without(f"importing the user's code took longer than {LOAD_SECONDS:g} s")
    except ConfigurationError as error:
        folds = _without(error.message)
    except EverstateError:
        raise  # the database: nothing works without it
    except Exception as error:  # noqa: BLE001 - an exit of the user's module, as `RuntimeError`
        folds = _without(f"importing the user's code ended with {error}")
    for entity_type, why in folds.refused.items():
        log.warning("fold not used", entity_type=entity_type, reason=why)
    return environment(database, folds, upcasters)


def _load(app: Path | None) -> tuple[list[FoldDefinition], Upcasters]:
    code = usercode.find(app)
    if code is None and app is not None:
        raise ConfigurationError(
            f"EVERSTATE_APP: {app} names no user code ([tool.everstate] is missing)"
        )
    if code is None or not code.folds:
        return [], Upcasters()  # nothing of the user's is run that is not needed
    return fold_registry.load(code), from_user_code(code)


def _without(problem: str) -> Folds:
    log.warning(
        "folds not loaded",
        reason=problem,
        hint="correct it and start the admin anew; all else works",
    )
    return Folds(problem=f"its code was not loaded: {problem}")
