"""Folds: finding them in the user's code, refusing wrong ones; threads for user code."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel import usercode
from kernel.errors import ConfigurationError, NoFold, Overloaded
from kernel.threads import Threads
from snapshots.fold_registry import load
from snapshots.folds import Fold, FoldDefinition, Folds, canonical

Write = Callable[..., Path]

CART = """
    from everstate.folds import Fold

    STEP = 1

    class Cart(Fold):
        "Counts."
        entity_type = "cart"
        version = 1

        def initial(self):
            return {"count": 0}

        def apply(self, state, event):
            state["count"] += STEP  # one more
            return state
"""


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes files of an app into a folder of its own; forgets its modules afterwards."""
    before, path = set(sys.modules), list(sys.path)

    def put(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    yield put
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def found_in(write: Write, *entries: str) -> list[FoldDefinition]:
    listed = ", ".join(f'"{entry}"' for entry in entries)
    return load(usercode.find(write("everstate.toml", f"folds = [{listed}]\n")))


def refused(write: Write, *entries: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        found_in(write, *entries)
    return caught.value.message


def test_a_fold_is_found_with_its_defaults(write: Write) -> None:
    write("cart_a.py", CART)
    [fold] = found_in(write, "cart_a")
    assert (fold.entity_type, fold.version, fold.snapshot_type) == ("cart", 1, "cart.v1")
    assert (fold.content_type, fold.types) == ("application/json", ("cart.v1",))
    assert fold.origin == "cart_a.Cart"
    state = fold.fold.apply(fold.fold.initial(), None)  # type: ignore[arg-type]
    assert fold.fold.dump(state) == b'{"count":1}'
    assert fold.fold.load(b'{"count":1}', "cart.v1") == state


def test_without_user_code_there_is_no_fold() -> None:
    assert load(None) == []


def test_the_digest_follows_the_code_and_not_its_comments_or_version(write: Write) -> None:
    def digest(module: str, text: str) -> str:
        write(f"{module}.py", text)
        return found_in(write, module)[0].digest

    first = digest("cart_b", CART)
    assert digest("cart_c", CART.replace("# one more", "# another one")) == first
    assert digest("cart_d", CART.replace('"Counts."', '"Counts all."')) == first
    assert digest("cart_e", CART.replace("STEP = 1", "STEP = 2")) != first
    typed = CART.replace("version = 1", 'version = 1\n        snapshot_type = "cart"')
    assert digest("cart_f", typed) != first


def test_two_folds_of_one_type_are_refused_with_both_files(write: Write) -> None:
    write("cart_g.py", CART)
    write("cart_h.py", CART)
    said = refused(write, "cart_g", "cart_h")
    assert "two folds are of entity type 'cart'" in said
    assert "cart_g.py" in said
    assert "cart_h.py" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('entity_type = "cart"', 'entity_type = ""', "Cart: entity_type: ''"),
        ('entity_type = "cart"', "entity_type = 3", "Cart: entity_type: 3"),
        ("version = 1", "version = 0", "Cart: version: 0 is not a number from 1"),
        ("version = 1", "version = True", "Cart: version: True"),
        ("version = 1", 'version = 1\n        loads = ("cart")', "Cart: loads: is not a list"),
        ("version = 1", 'version = 1\n        loads = [""]', "Cart: loads: ''"),
        ("version = 1", "version = 1\n        loads = ['a'] * 21", "loads: 21 are more than 20"),
        ("version = 1", 'version = 1\n        snapshot_type = "a\\nb"', "Cart: snapshot_type"),
        ("def apply", "def apples", "Cart: apply: is not written"),
        ("def initial", "def first", "Cart: initial: is not written"),
        (
            "def initial",
            "def to_json(self, state): return 1\n        def initial",
            "Cart: dump: is",
        ),
        ('{"count": 0}', "(0, 0)", "Cart: load: is not written, and a state (tuple) is not"),
        ('{"count": 0}', "{'count': {1: 2}}", "Cart: load: is not written"),
        ("def initial", "def __init__(self): 1 / 0\n        def initial", "ZeroDivisionError"),
        ("(Fold)", "", "has no fold"),
    ],
)
def test_a_wrong_fold_is_refused_in_a_sentence(write: Write, old: str, new: str, said: str) -> None:
    write("cart_wrong.py", CART.replace(old, new))
    assert said in refused(write, "cart_wrong")


def test_a_path_and_a_module_that_is_not_there_are_refused(write: Write) -> None:
    assert "name modules, not paths" in refused(write, "sql/")
    assert "there is no nothing" in refused(write, "nothing")


class Plain(Fold[Any]):
    entity_type = "plain"


def test_who_has_no_fold_is_told_so_and_why() -> None:
    with pytest.raises(NoFold, match=r"there is no fold of entity type 'plain'$"):
        Folds().named("plain")
    with pytest.raises(NoFold, match="'plain': cannot be imported"):
        Folds(problem="cannot be imported").named("plain")
    made = FoldDefinition("plain", 1, "d", "o", "f", "plain.v1", "c", ("plain.v1",), Plain())
    assert Folds([made]).named("plain") is made
    with pytest.raises(NoFold, match="other code"):
        Folds([made], refused={"plain": "other code"}).named("plain")
    assert Folds([made], refused={"plain": "other code"}).get("plain") is None


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": 1, "a": [2]}) == canonical({"a": [2], "b": 1}) == b'{"a":[2],"b":1}'


# Threads


def _spin() -> None:
    while True:
        pass


async def test_a_call_gives_its_result_or_its_error() -> None:
    threads = Threads(1)
    assert await threads.run(lambda: threading.current_thread().daemon, 5) is True

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(KeyError):
        await threads.run(lambda: fail(KeyError("x")), 5)
    for odd in (SystemExit(3), StopIteration()):
        with pytest.raises(RuntimeError, match=type(odd).__name__):
            await threads.run(lambda odd=odd: fail(odd), 5)  # type: ignore[misc]


async def test_a_call_that_never_ends_is_given_up_and_ended_while_the_loop_goes_on() -> None:
    threads = Threads(1)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    beside = asyncio.create_task(tick())
    with pytest.raises(TimeoutError):
        await threads.run(_spin, 0.5)
    beside.cancel()
    assert ticks > 5
    assert await threads.run(lambda: 7, 5) == 7, "its place is free: the thread has ended"


async def test_a_cancelled_call_is_ended() -> None:
    threads = Threads(1)
    task = asyncio.create_task(threads.run(_spin, 60))
    began = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, began.set)
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await threads.run(lambda: 7, 5) == 7


async def test_what_hangs_outside_of_python_keeps_its_place_and_others_are_told() -> None:
    threads = Threads(1)
    released = threading.Event()
    with pytest.raises(TimeoutError):
        await threads.run(lambda: released.wait(30), 0.05)
    with pytest.raises(Overloaded, match="all 1 threads"):
        await threads.run(lambda: 7, 0.05)
    released.set()
    assert await threads.run(lambda: 7, 5) == 7


async def test_calls_run_side_by_side() -> None:
    threads = Threads(2)
    both = threading.Barrier(2, timeout=5)
    began = time.monotonic()
    await asyncio.gather(threads.run(both.wait, 5), threads.run(both.wait, 5))
    assert time.monotonic() - began < 5
