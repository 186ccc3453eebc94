"""Folds in real processes: workers register them, the admin outlives bad ones."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support import LOOPBACK, Node, Said, clean_env, cli, ports, start

CART = """
from everstate.folds import Fold

class Cart(Fold):
    entity_type = "cart"

    def initial(self):
        return {"sum": 0}

    def apply(self, state, event):
        return {"sum": state["sum"] + event.data["by"]}
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "everstate.toml").write_text('folds = ["my_cart_folds"]\n')
    (folder / "my_cart_folds.py").write_text(CART)
    return folder


def work(database_url: str, app: Path) -> dict[str, str]:
    return clean_env(
        EVERSTATE_DATABASE_URL=database_url, EVERSTATE_APP=app, EVERSTATE_WORKER_METRICS_PORT=0
    )


def test_other_code_under_a_registered_version_stops_the_worker_with_exit_code_4(
    database_url: str, app: Path
) -> None:
    env = work(database_url, app)
    with start("work", env=env) as worker:
        worker.until("^worker ready")
        worker.end(signal.SIGTERM)
    (app / "my_cart_folds.py").write_text(CART.replace('event.data["by"]', 'event.data["by"] + 1'))
    refused = cli("work", env=env)
    assert refused.code == 4
    assert "my_cart_folds.Cart: fold of cart version 1 has other code than was" in refused.err
    assert "give it the next version" in refused.err
    assert "Traceback" not in refused.err
    changed = (app / "my_cart_folds.py").read_text()
    (app / "my_cart_folds.py").write_text(
        changed.replace('entity_type = "cart"', 'entity_type = "cart"\n    version = 2')
    )
    with start("work", env=env) as worker:
        worker.until("^worker ready")
        worker.end(signal.SIGTERM)


def test_a_wrong_fold_stops_the_worker_with_file_and_line(database_url: str, app: Path) -> None:
    (app / "my_cart_folds.py").write_text("import nothing_there\n" + CART)
    refused = cli("work", env=work(database_url, app))
    assert refused.code == 2
    assert "my_cart_folds: cannot be imported: ModuleNotFoundError" in refused.err
    assert "my_cart_folds.py:1" in refused.err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (CART, None),
        (CART.replace('"by"', '"to"'), "FOLD_FAILED"),
        ("1 / 0", "its code was not loaded: "),
        ("raise SystemExit(3)", "importing the user's code ended with SystemExit"),
        (CART.replace("Cart(Fold)", "Cart"), "has no fold"),
        (CART.replace("+ event", "+ 0 + event"), "has other code than was registered"),
    ],
)
def test_the_admin_runs_with_any_user_code_and_says_what_is_wrong_with_it(
    database_url: str, app: Path, code: str, said: str | None
) -> None:
    (admin_port,) = ports(1)
    env = work(database_url, app) | {"EVERSTATE_ADMIN_PORT": str(admin_port)}
    with start("work", env=env) as worker:
        worker.until("^worker ready")
        worker.end(signal.SIGTERM)
    with Node(database_url) as node:
        node.cli("entity", "append", "cart/c", "--event-type", "Added", "--data", '{"by": 7}').ok()
    if said == "FOLD_FAILED":
        code = code.replace('entity_type = "cart"', 'entity_type = "cart"\n    version = 2')
    (app / "my_cart_folds.py").write_text(code)
    token = cli("admin", "--create-token", "me", "--grant", "payload", env=env).ok().out.strip()
    with start("admin", env=env) as admin:
        admin.until("^admin ready")
        asked = env | {"EVERSTATE_TOKEN": token}

        def ask(*arguments: str) -> Said:
            url = f"http://{LOOPBACK}:{admin_port}"
            return cli("entity", *arguments, "cart/c", "--url", url, env=asked)

        found = ask("state")
        if said is None:
            assert found.ok().out.startswith("cart/c: sequence 1, ")
            assert '"sum": 7' in found.out
            assert ask("verify").ok().out.startswith("cart/c: sequence 1, 1 events folded, no snap")
        elif said == "FOLD_FAILED":
            assert found.code == 4
            assert "fold of cart version 2: cart/c: sequence 1: KeyError (" in found.sentence()
        else:
            assert found.code == 3
            assert said in found.sentence()
            assert "there is no fold of entity type 'cart'" in found.sentence()
        admin.end(signal.SIGTERM)
