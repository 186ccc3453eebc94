"""Upcasters: chains, circles, failures that tell nothing of the data."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everstate.upcasters import upcaster
from kernel import usercode
from kernel.errors import ConfigurationError, Undecodable
from schemas.upcasters import Shape, Upcasters, from_user_code

_serial = itertools.count()


@upcaster("ItemAdded", from_version=1)
def with_quantity(data: Any) -> Any:
    return data | {"quantity": 1}


@upcaster("ItemAdded", from_version=2)
def in_cents(data: Any) -> Any:
    data["cents"] = round(data.pop("price") * 100)
    return data


@upcaster("ItemPut", to="ItemAdded", to_version=1)
def renamed(data: Any) -> Any:
    return {"sku": data["article"], "price": data["price"]}


ALL = Upcasters([in_cents, renamed, with_quantity])


def test_upcasters_are_chained_until_none_applies_and_may_rename_the_type() -> None:
    shape, data = ALL.apply("ItemPut", 0, {"article": "a", "price": 1.5})
    assert shape == ("ItemAdded", 3)
    assert data == {"sku": "a", "quantity": 1, "cents": 150}
    assert ALL.apply("ItemAdded", 2, {"price": 1})[1] == {"cents": 100}


def test_other_shapes_stay_as_they_are() -> None:
    for shape in (("ItemAdded", 3), ("ItemAdded", 0), ("ItemPut", 1), ("Other", 1)):
        data = {"price": 1}
        assert ALL.apply(*shape, data) == (shape, {"price": 1})


def test_the_target_and_the_sources_of_types_are_known_without_an_event() -> None:
    assert ALL.target("ItemPut", 0) == Shape("ItemAdded", 3)
    assert ALL.target("ItemPut", 9) == Shape("ItemPut", 9)
    assert ALL.sources(["ItemAdded"]) == ("ItemAdded", "ItemPut")
    assert ALL.sources(["ItemPut", "Other"]) == ("ItemPut", "Other")
    assert ALL.sources([]) == ()


def test_two_for_one_shape_are_refused() -> None:
    again = upcaster("ItemAdded", from_version=1)(lambda data: data)
    with pytest.raises(ConfigurationError, match=r"with_quantity and .*<lambda> are both for"):
        Upcasters([with_quantity, again])
    assert len(Upcasters([with_quantity, with_quantity])) == 1


def test_a_circle_is_refused_before_any_event_is_read() -> None:
    back = upcaster("ItemAdded", from_version=3, to_version=1)(lambda data: data)
    with pytest.raises(ConfigurationError, match="in a circle at ItemAdded version"):
        Upcasters([with_quantity, in_cents, back])


@pytest.mark.parametrize(
    "wrong",
    [
        {"event_type": ""},
        {"event_type": "E", "from_version": -1},
        {"event_type": "E", "from_version": 2**31 - 1},
        {"event_type": "E", "from_version": 1, "to_version": 1},
        {"event_type": "E", "to": "E", "to_version": 0},
    ],
)
def test_a_wrong_declaration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        upcaster(**wrong)


def test_a_failure_names_upcaster_shape_and_line_and_nothing_of_the_data() -> None:
    @upcaster("E")
    def broken(data: Any) -> Any:
        return int(data["secret"])

    with pytest.raises(Undecodable) as found:
        Upcasters([broken]).apply("E", 0, {"secret": "hunter2"})
    said = found.value.message
    assert "E version 0: the upcaster" in said
    assert "broken raised ValueError at" in said
    assert f"{__file__}:" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("value", [{1, 2}, b"", object(), {"a": [{1}]}, {1: 2}, 1 << 70, "\ud800"])
def test_a_result_that_is_no_json_value_is_refused(value: Any) -> None:
    wrong = upcaster("E")(lambda _: value)
    with pytest.raises(Undecodable, match="returned what is no JSON value"):
        Upcasters([wrong]).apply("E", 0, {})


def test_what_an_upcaster_returns_is_what_json_makes_of_it() -> None:
    kept: dict[str, Any] = {"a": (1, 2), "b": float("nan")}
    same = upcaster("E")(lambda _: kept)
    found = Upcasters([same]).apply("E", 0, {})[1]
    assert found == {"a": [1, 2], "b": None}
    assert found is not kept


# -- the user's modules --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before


DECLARES = """
from everstate.upcasters import upcaster

@upcaster("A", from_version={0})
def one(data):
    return data
"""


def user_code(folder: Path, *sources: str) -> usercode.UserCode:
    names = []
    for source in sources:
        names.append(f"up{next(_serial)}")
        (folder / f"{names[-1]}.py").write_text(source, encoding="utf-8")
    listed = ", ".join(f'"{name}"' for name in names)
    (folder / "everstate.toml").write_text(f"upcasters = [{listed}]", encoding="utf-8")
    code = usercode.find(folder)
    assert code is not None
    return code


def test_the_modules_that_everstate_toml_names_are_looked_through(folder: Path) -> None:
    found = from_user_code(user_code(folder, DECLARES.format(1), DECLARES.format(2)))
    assert found.target("A", 1) == Shape("A", 3)
    assert len(from_user_code(None)) == 0


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["x = 1"], "declares no @upcaster"),
        ([DECLARES.format(1)] * 2, "are both for A version 1"),
        ([DECLARES.format(-1)], "version -1 is not within"),
    ],
)
def test_wrong_modules_are_refused_with_the_file(
    folder: Path, sources: list[str], said: str
) -> None:
    with pytest.raises(ConfigurationError) as found:
        from_user_code(user_code(folder, *sources))
    assert said in found.value.message
    assert "everstate.toml" in found.value.message


def test_a_path_is_refused(folder: Path) -> None:
    (folder / "everstate.toml").write_text('upcasters = ["up/"]', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="name modules, not paths"):
        from_user_code(usercode.find(folder))
