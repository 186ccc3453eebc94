"""Writes migrations/schema.sql: the SQL of all migrations in order, as one readable file.

`tests/migration` runs it beside the migrations and compares the catalogs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

MIGRATIONS = Path(__file__).resolve().parents[1] / "migrations"
TARGET = MIGRATIONS / "schema.sql"

HEAD = """\
-- The schema as all migrations leave it, to be read from top to bottom. Made by scripts/schema from
-- migrations/sql: do not edit it, and do not run it against a database that is to be migrated later
-- (`everstate migrate` does that).

CREATE SCHEMA everstate;

"""

VERSION = """
-- What Alembic keeps.
CREATE TABLE everstate.alembic_version (
  version_num varchar(32) NOT NULL,
  CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO everstate.alembic_version (version_num) VALUES ('{revision}');
"""


def text() -> str:
    """What the file has to hold."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    parts = [HEAD]
    revision = ""
    for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
        revision = script.revision
        for name in script.module.SCRIPTS:
            sql = (MIGRATIONS / "sql" / f"{name}.sql").read_text("utf-8").strip()
            parts.append(f"-- == {revision}: {name}\n\n{sql}\n\n")
    return "".join(parts).rstrip() + "\n" + VERSION.format(revision=revision)


def main() -> int:
    """Writes the file, or checks it."""
    wanted = text()
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text("utf-8") != wanted:
            print("migrations/schema.sql is not what the migrations say: run scripts/schema")
            return 1
        return 0
    TARGET.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
