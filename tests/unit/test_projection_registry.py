"""Finding the user's projections: everstate.toml, modules, SQL files, names, digests."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel import usercode
from kernel.digest import digest_of, roots_of
from kernel.errors import ConfigurationError
from projections.model import Definition
from projections.registry import load

Write = Callable[..., Path]

FOLDERS = """
    from everstate.projections import Projection

    LIMIT = 3

    def helper(x):
        return x + LIMIT

    def unrelated(x):
        return x

    class Folders(Projection):
        "Lines by folder."
        name = "folders"
        version = 1
        on_poison = "halt"
        tables = "CREATE TABLE folders (a int);"

        async def apply(self, events, tx):
            helper(1)  # a comment
"""
SQL = "-- projection: files\n-- version: 1\n-- on: A\nSELECT 1;\n"


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes files of an app into a folder of its own; forgets its modules afterwards."""
    before, path = set(sys.modules), list(sys.path)

    def put(name: str, text: str) -> Path:
        file = tmp_path / "app" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    yield put
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)) or not file:
            del sys.modules[name]


def found_in(write: Write, *entries: str) -> list[Definition]:
    listed = ", ".join(f'"{entry}"' for entry in entries)
    file = write("everstate.toml", f"projections = [{listed}]\n")
    code = usercode.find(file)
    assert code is not None
    return load(code)


def fresh(write: Write, text: str, module: str) -> Definition:
    """The projection of a module that is loaded anew."""
    write(f"{module}.py", text)
    return found_in(write, module)[0]


def refused(write: Write, *entries: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        found_in(write, *entries)
    return caught.value.message


def test_modules_and_folders_of_sql_are_found_from_the_toml_file(write: Write) -> None:
    write("shop/__init__.py", "")
    write("shop/projections.py", FOLDERS)
    write("sql/files.sql", SQL)
    found = found_in(write, "shop.projections", "sql/")
    assert [(d.name, d.version, d.kind) for d in found] == [
        ("files", 1, "sql"),
        ("folders", 1, "python"),
    ]
    assert found[0].origin == "sql/files.sql"
    assert found[1].origin == "shop.projections.Folders"
    assert found[1].make is not None
    assert sys.path[-1] == str(write("x", "").parent), "the user's folder goes last"


@pytest.mark.parametrize(
    ("entry", "message"),
    [("nowhere", "there is no nowhere in"), ("nowhere.sql", "there is no 'nowhere.sql'"),
     ("empty/", "there is no 'empty/'"), ("shop.nowhere", "there is no shop in")],
)  # fmt: skip
def test_an_entry_that_is_not_there_is_refused_by_name(
    write: Write, entry: str, message: str
) -> None:
    assert message in refused(write, entry)


def test_a_module_that_fails_says_why(write: Write) -> None:
    write("broken_one.py", "import nothing_like_this\n")
    assert "broken_one: cannot be imported: ModuleNotFoundError" in refused(write, "broken_one")
    write("broken_two.py", "def x(:\n")
    assert "broken_two: cannot be imported: SyntaxError" in refused(write, "broken_two")
    write("without.py", "x = 1\n")
    assert "module 'without' has no projection" in refused(write, "without")


@pytest.mark.parametrize("name", ["migrations", "journal", "projections", "everstate"])
def test_a_package_with_the_name_of_ours_is_not_shadowed_silently(write: Write, name: str) -> None:
    write(f"{name}/__init__.py", "")
    write(f"{name}/entries.py", "x = 1\n")
    assert f"{name} is a package of Everstate" in refused(write, f"{name}.entries")
    write(f"user_{name}.py", f"x = 1\nfrom {name} import entries\n")
    said = refused(write, f"user_{name}")
    assert said.startswith(f"user_{name}.py:2: `import {name}` means ")
    assert "is a package of Everstate, which comes first" in said


def test_a_shadowed_import_in_a_module_that_is_imported_is_found_too(write: Write) -> None:
    write("migrations/__init__.py", "")
    write("deep.py", "def f():\n    import migrations\n    return migrations\n")
    write("top_of_deep.py", "import deep\n" + textwrap.dedent(FOLDERS))
    assert refused(write, "top_of_deep").startswith("deep.py:2: `import migrations`")


def test_a_package_with_the_name_of_ours_that_nobody_imports_is_no_trouble(write: Write) -> None:
    write("migrations/__init__.py", "x = 1\n")
    assert fresh(write, FOLDERS, "harmless").name == "folders"
    import migrations

    assert "app" not in (migrations.__file__ or "").split("/")


def test_two_projections_with_one_name_are_refused_with_both_places(write: Write) -> None:
    write("twice.py", FOLDERS.replace("folders", "files"))
    write("files.sql", SQL)
    said = refused(write, "twice", "files.sql")
    assert said == "two projections are named 'files': twice.Folders and files.sql"
    write("files.sql", SQL.replace("version: 1", "version: 2"))
    assert "two projections are named 'files'" in refused(write, "twice", "files.sql")


def test_an_old_version_that_the_new_one_names_is_registered_too(write: Write) -> None:
    newer = """
    class Newer(Folders):
        version = 2
        name = "folders"
        replaces = Folders
    """
    write("both.py", textwrap.dedent(FOLDERS) + textwrap.dedent(newer))
    found = found_in(write, "both")
    assert [(d.version, d.superseded) for d in found] == [(1, True), (2, False)]
    write("wrong.py", (textwrap.dedent(FOLDERS) + textwrap.dedent(newer)).replace("= 2", "= 1"))
    assert "replaces: is not an older version of 'folders'" in refused(write, "wrong")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("version = 1", "version = 0", "version: 0 is not a number from 1"),
     ("version = 1", "other = 1", "version: is not set"),
     ("version = 1", "version = True", "version: True is not"),
     ('name = "folders"', 'name = "Folders"', "name: 'Folders' does not match"),
     ('"halt"', '"stop"', "on_poison: 'stop' is neither halt nor park"),
     ("async def apply", "async def applies", "apply: is not written"),
     ("version = 1", 'version = 1; event_types = ("A")', "event_types: is not a list of names"),
     ("version = 1", "version = 1; segments = 2000", "segments: 2000 is not a number from 1"),
     ("CREATE TABLE", "COMMIT; CREATE TABLE", "tables: line 1: COMMIT is not allowed")],
)  # fmt: skip
def test_a_class_that_is_wrong_is_named_with_the_attribute(
    write: Write, old: str, new: str, message: str, request: pytest.FixtureRequest
) -> None:
    module = "wrong_" + str(abs(hash((old, new))))
    write(f"{module}.py", FOLDERS.replace(old, new))
    said = refused(write, module)
    assert said.startswith(f"{module}.Folders: ")
    assert message in said


def test_the_digest_changes_with_the_code_that_the_class_uses_and_with_nothing_else(
    write: Write,
) -> None:
    def digest(number: int, old: str = "", new: str = "") -> str:
        assert old in FOLDERS
        return fresh(write, FOLDERS.replace(old, new), f"pile_{number}").digest

    same = digest(0)
    assert digest(1, "  # a comment", "") == same
    assert digest(2, "Lines by folder.", "Other words.") == same
    assert digest(3, "return x\n\n    class", "return x + 9\n\n    class") == same, "a neighbour"
    assert digest(4, 'on_poison = "halt"', 'on_poison = "park"') == same
    assert digest(5, "helper(1)", "helper(2)") != same
    assert digest(6, "x + LIMIT", "x - LIMIT") != same
    assert digest(7, "LIMIT = 3", "LIMIT = 4") != same
    assert digest(8, "(a int)", "(a bigint)") != same


IMPORTS = {
    "import package.module as name": (
        "import shop.rules as rules", "rules.price(1)", "from shop.tax import RATE"),
    "from package import module": (
        "from shop import rules", "rules.price(1)", "from shop.tax import RATE"),
    "from package import module, relative": (
        "from .shop import rules", "rules.price(1)", "from .tax import RATE"),
    "import package.module": (
        "import shop.rules", "shop.rules.price(1)", "import shop.tax\nRATE = shop.tax.RATE"),
    "inside a function": (
        "", "__import_here__", "def rate():\n    from shop import tax\n    return tax.RATE"),
    "inside try": (
        "try:\n    from shop.rules import price\nexcept ImportError:\n    price = None",
        "price(1)", "try:\n    from shop.tax import RATE\nexcept ImportError:\n    RATE = 0"),
    "everything": ("from shop.rules import *", "price(1)", "from shop.tax import *"),
}  # fmt: skip
FOLD_OF = """
from everstate.folds import Fold
{imported}
class Cart(Fold):
    entity_type = "cart"
    def initial(self):
        return 0
    def apply(self, state, event):
        {local}
        return {used}
"""
PROJECTION_OF = """
from everstate.projections import Projection
{imported}
class Carts(Projection):
    name = "carts"
    version = 1
    tables = "CREATE TABLE carts (a int)"
    async def apply(self, transaction, event):
        {local}
        return {used}
"""


@pytest.mark.parametrize("template", [FOLD_OF, PROJECTION_OF], ids=["fold", "projection"])
@pytest.mark.parametrize("style", IMPORTS)
def test_the_digest_sees_what_other_modules_do_however_they_are_imported(
    tmp_path: Path, style: str, template: str
) -> None:
    imported, used, further = IMPORTS[style]
    local = "pass"
    if used == "__import_here__":
        local, used = "from shop.rules import rate", "rate()"
    files = {
        "app.py": template.format(imported=imported, used=used, local=local),
        "shop/__init__.py": "",
        "shop/rules.py": f"{further}\ndef price(x):\n    return x * RATE\n",
        "shop/tax.py": "RATE = 1\n",
        "shop/other.py": "RATE = 1\n",
    }
    package = "from .shop" in imported
    found = [
        _digest_elsewhere(tmp_path / str(number), {**files, **changed}, package=package)
        for number, changed in enumerate(
            [
                {},
                {"shop/other.py": "RATE = 2\n"},
                {"shop/tax.py": "# a comment\nRATE = 1\n"},
                {"shop/tax.py": "RATE = 2\n"},
                {"shop/rules.py": files["shop/rules.py"].replace("x *", "x +")},
            ]
        )
    ]
    assert found[1] == found[2] == found[0], "what is not imported, and comments, do not count"
    assert len({found[0], found[3], found[4]}) == 3


def _digest_elsewhere(folder: Path, files: dict[str, str], *, package: bool) -> str:
    """The digest of the one class of app.py, in a folder that was never seen before."""
    inner = folder / "whole" if package else folder
    if package:
        files = {**files, "__init__.py": ""}
    for name, text in files.items():
        file = inner / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    before, path = set(sys.modules), list(sys.path)
    sys.path.append(str(folder))
    try:
        importlib.invalidate_caches()
        module = importlib.import_module("whole.app" if package else "app")
        [kind] = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        return digest_of(kind, roots_of(kind, folder))
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in {"whole", "app", "shop"}:
                del sys.modules[name]


@pytest.mark.parametrize("character", ["\f", "\x1c", "\x85", "\u2028"])
def test_the_digest_sees_the_last_line_also_after_what_is_no_line_end_to_python(
    write: Write, character: str
) -> None:
    before = FOLDERS.replace("LIMIT = 3", f"LIMIT = 3\n    NOTE = 'a{character}b'")
    after = before.replace("helper(1)", "helper(2)")
    name = f"odd_{ord(character)}"
    found = fresh(write, before, name).digest
    assert fresh(write, before, f"{name}_same").digest == found
    assert fresh(write, after, f"{name}_other").digest != found
