"""User code: what its file may say, what is imported, what is refused."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import usercode
from kernel.errors import ConfigurationError

_serial = itertools.count()


@pytest.fixture(autouse=True)
def _path(tmp_path: Path) -> Iterator[None]:
    before, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_toml", ".toml").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def refused(folder: Path | None) -> str:
    with pytest.raises(ConfigurationError) as found:
        usercode.find(folder)
    return found.value.message


def test_everstate_toml_names_modules_and_paths(tmp_path: Path) -> None:
    write(tmp_path, everstate_toml='projections = ["shop.projections", "sql/", "one.sql"]')
    code = usercode.find(tmp_path)
    assert code is not None
    assert code.projections == ("shop.projections", "sql/", "one.sql")
    assert (code.upcasters, code.folds, code.folder) == ((), (), tmp_path)
    assert [usercode.is_path(entry) for entry in code.projections] == [False, True, True]
    assert usercode.find(tmp_path / "everstate.toml") == code


def test_a_pyproject_does_too_but_everstate_toml_wins(tmp_path: Path) -> None:
    write(tmp_path, pyproject_toml='[tool.everstate]\nupcasters = ["a"]')
    code = usercode.find(tmp_path)
    assert code is not None
    assert code.upcasters == ("a",)
    write(tmp_path, everstate_toml='upcasters = ["b"]')
    code = usercode.find(tmp_path)
    assert code is not None
    assert code.upcasters == ("b",)


def test_a_folder_without_either_names_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, pyproject_toml="[tool.ruff]\nline-length = 100")
    assert usercode.find(tmp_path) is None
    monkeypatch.chdir(tmp_path)
    assert usercode.find() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("projections = [", "is not TOML"),
        ("projection = []", "unknown key 'projection'; there are projections, upcasters, folds"),
        ('projections = "shop"', "projections: is not a list"),
        ("upcasters = [1]", "upcasters: is not a list"),
        ('upcasters = ["a", "a"]', "names 'a' twice"),
        ('upcasters = ["a-b"]', "'a-b' is neither a module name nor a path"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_that_is_wrong(
    tmp_path: Path, text: str, said: str
) -> None:
    write(tmp_path, everstate_toml=text)
    message = refused(tmp_path)
    assert said in message
    assert str(tmp_path / "everstate.toml") in message


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "missing.toml")


def loaded(folder: Path, name: str) -> str:
    write(folder, everstate_toml=f'upcasters = ["{name}"]')
    code = usercode.find(folder)
    assert code is not None
    return usercode.load(code, "upcasters", code.upcasters)[0].__name__


def test_modules_come_from_the_users_folder_which_is_last_on_the_path(tmp_path: Path) -> None:
    package = f"shop{next(_serial)}"
    write(tmp_path, **{f"{package}__up_py": "from . import other\nx = other.y"})
    write(tmp_path, **{f"{package}__other_py": "y = 1"})
    assert loaded(tmp_path, f"{package}.up") == f"{package}.up"
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def import_error(folder: Path, name: str) -> str:
    with pytest.raises(ConfigurationError) as found:
        loaded(folder, name)
    return found.value.message


def test_a_module_named_like_one_of_ours_is_refused(tmp_path: Path) -> None:
    write(tmp_path, journal__mine_py="x = 1")
    assert "journal is a package of Everstate; give yours another name" in import_error(
        tmp_path, "journal.mine"
    )


def test_a_module_that_an_installed_one_shadows_is_refused(tmp_path: Path) -> None:
    write(tmp_path, orjson_py="x = 1")
    message = import_error(tmp_path, "orjson")
    assert "would be taken for it; give yours another name" in message


def test_a_module_that_is_not_in_the_folder_is_refused_even_if_one_is_installed(
    tmp_path: Path,
) -> None:
    assert f"there is no orjson in {tmp_path}" in import_error(tmp_path, "orjson")


def test_hidden_names_of_the_folder_are_told(tmp_path: Path) -> None:
    write(tmp_path, everstate_toml="", migrations____init___py="", operations_py="")
    (tmp_path / "migrations").mkdir(exist_ok=True)
    (tmp_path / "migrations" / "__init__.py").write_text("")
    code = usercode.find(tmp_path)
    assert code is not None
    assert code.hidden == ("migrations", "operations")


@pytest.mark.parametrize("text", ["import operations", "def f():\n    from operations import x"])
def test_an_import_that_would_get_ours_instead_of_the_users_is_refused(
    tmp_path: Path, text: str
) -> None:
    name = f"shadowed{next(_serial)}"
    write(tmp_path, operations_py="x = 1", **{f"{name}_py": text})
    message = import_error(tmp_path, name)
    line = text.count("\n") + 1
    assert message.startswith(f"{name}.py:{line}: `import operations` means {tmp_path}/operations")


def test_a_module_that_fails_is_refused_with_cause_and_place(tmp_path: Path) -> None:
    name = f"broken{next(_serial)}"
    write(tmp_path, **{f"{name}_py": "x = 1\nimport no_such_module_at_all"})
    message = import_error(tmp_path, name)
    assert "ModuleNotFoundError: No module named 'no_such_module_at_all'" in message
    assert f"({tmp_path / name}.py:2)" in message


def test_a_syntax_error_is_refused_too(tmp_path: Path) -> None:
    name = f"broken{next(_serial)}"
    write(tmp_path, **{f"{name}_py": "def f(:\n"})
    assert "SyntaxError" in import_error(tmp_path, name)


def test_the_digest_sees_code_and_strings_but_no_comments(tmp_path: Path) -> None:
    plain = 'x = 1\n\n\ndef f():\n    """Doc # no comment\n\n    end"""\n    return "# no"\n'
    same = plain.replace("x = 1\n", "# first\nx = 1  # one\n").replace("return", "return")
    assert usercode.without_comments(plain) == usercode.without_comments(same)
    for old, new in (("x = 1", "x = 2"), ("# no comment", "# No comment"), ('"# no"', '"# n"')):
        assert old in plain
        changed = plain.replace(old, new)
        assert usercode.without_comments(changed) != usercode.without_comments(plain)
    inside = plain.replace("comment\n\n", "comment\n \n")
    assert usercode.without_comments(inside) != usercode.without_comments(plain)


@pytest.mark.parametrize("character", ["\f", "\x1c", "\x85", "\u2028"])
def test_lines_are_those_that_python_counts(character: str) -> None:
    source = f"s = 'a{character}b'\n\n\nx = 1  # one\ny = 2  # two\nz = 3\n"
    expected = f"s = 'a{character}b'\nx = 1\ny = 2\nz = 3"
    assert usercode.without_comments(source) == expected


def test_the_digest_is_that_of_the_files(tmp_path: Path) -> None:
    name = f"digested{next(_serial)}"
    write(tmp_path, **{f"{name}_py": "x = 1  # a\n"})
    loaded(tmp_path, name)
    module = sys.modules[name]
    before = usercode.source_digest(module)
    write(tmp_path, **{f"{name}_py": "x = 1\n"})
    assert usercode.source_digest(module) == before
    write(tmp_path, **{f"{name}_py": "x = 2\n"})
    assert usercode.source_digest(module) != before
