"""SQL as data: one statement a file, written for the schema ``everstate``.

A file begins with a comment block that states the parameters, the row shape and the index the
statement must use. `load` strips the block and puts the configured schema's name in the place of
``everstate.``; a house test prepares every file against the migrated schema.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from kernel.errors import ConfigurationError

DEFAULT_SCHEMA = "everstate"

_QUALIFIER = re.compile(r"\beverstate\.")
_BARE = re.compile(r"\bSCHEMA (IF NOT EXISTS )?everstate\b")


def check_schema_name(schema: str) -> str:
    """Returns ``schema`` when it is a plain lower-case SQL name of at most 63 characters.

    Raises:
        ConfigurationError: it is not.

    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
        raise ConfigurationError(f"EVERSTATE_SCHEMA: {schema!r} is not a lower-case SQL name")
    return schema


def in_schema(text: str, schema: str) -> str:
    """``text`` with ``schema`` in the place of ``everstate``."""
    if schema == DEFAULT_SCHEMA:
        return text
    check_schema_name(schema)
    return _BARE.sub(rf"SCHEMA \g<1>{schema}", _QUALIFIER.sub(f"{schema}.", text))


@cache
def load(package: str, name: str, schema: str = DEFAULT_SCHEMA) -> str:
    """The statement of ``<package>/sql/<name>.sql`` for ``schema``, without its header comment."""
    text = files(package).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    lines = text.splitlines()
    while lines and (lines[0].startswith("--") or not lines[0].strip()):
        lines.pop(0)
    return in_schema("\n".join(lines).strip(), schema)
