"""`everstate dev` as a process, with stand-ins for its children where their behaviour matters."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from everstate.commands.dev import masked
from everstate.lifecycle import free_port, is_port_busy
from kernel.devdb_host import servers_of
from kernel.tokens import digest_of

ROOT = Path(__file__).parents[2]

DRIVER = """
import os, sys
from pathlib import Path
from everstate.commands.dev import Programs, run
python = [sys.executable, "-c"]
migrate, serve, admin, work, *options = sys.argv[1:]
programs = Programs(*([*python, program] for program in (migrate, serve, admin, work)))
app = Path(options[1]) if "--app" in options else None
sys.exit(run(os.environ, sample="--no-sample" not in options, app=app, programs=programs))
"""

MIGRATE = 'print("migrated")'

SERVE = """
import json, os, signal, sys, threading
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
print("pid", os.getpid())
grpc, metrics = os.environ["EVERSTATE_GRPC_PORT"], os.environ["EVERSTATE_METRICS_PORT"]
said = {"grpc": f"127.0.0.1:{grpc}", "metrics": f"http://127.0.0.1:{metrics}"}
os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), json.dumps(said).encode() + b"\\n")
stop.wait()
print("bye")
"""

ADMIN = """
import json, os, signal, sys, threading
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
said = {"http": "http://127.0.0.1:" + os.environ["EVERSTATE_ADMIN_PORT"]}
os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), json.dumps(said).encode() + b"\\n")
stop.wait()
"""

WORK = """
import json, os, signal, sys, threading
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
port = os.environ["EVERSTATE_WORKER_METRICS_PORT"]
said = {"metrics": "http://127.0.0.1:" + port, "projections": "0"}
os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), json.dumps(said).encode() + b"\\n")
stop.wait()
"""


@dataclass
class Dev:
    """A running `everstate dev` and the lines that it has said."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def until(self, pattern: str) -> re.Match[str]:
        """Read lines until one matches; the test's timeout bounds it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no line like {pattern!r} in {self.lines}, {self.error()}")

    def node_pid(self) -> int:
        """The pid of a node that has just started: the line that says it and the one that says that
        it is ready come in either order.
        """
        first = self.until(r"node \| pid (\d+)|node +ready")
        other = self.until(r"node +ready" if first[1] else r"node \| pid (\d+)")
        return int(first[1] or other[1])

    def error(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def end(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += self.process.stdout.read().splitlines()
        return self.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dev"


class Starter:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[Dev] = []

    def __call__(
        self, migrate: str = MIGRATE, serve: str = SERVE, *options: str, **env: str
    ) -> Dev:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EVERSTATE_")}
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, textwrap.dedent(migrate), serve, ADMIN, WORK, *options],
            env={**kept, "EVERSTATE_DEV_DIR": str(self.folder), **env},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(Dev(process))
        return self.running[-1]


@pytest.fixture
def start(folder: Path) -> Iterator[Starter]:
    starter = Starter(folder)
    yield starter
    for dev in starter.running:
        with dev.process:
            dev.process.kill()


def refusal(dev: Dev) -> tuple[int, list[str]]:
    code = dev.end()
    lines = dev.error().splitlines()
    assert not any("Traceback" in line for line in lines), lines
    return code, lines


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_starts_all_says_where_and_stops_in_reverse_order(start: Starter, folder: Path) -> None:
    dev = start()
    dev.until("Ctrl-C stops")
    postgresql = next(line for line in dev.lines if line.startswith("postgresql"))
    dsn = f"postgresql://everstate@/everstate?host={folder}/postgresql.run&port=5432"
    assert postgresql == f"postgresql  ready  {dsn}"
    assert "migrate | migrated" in dev.lines
    node = next(line for line in dev.lines if line.startswith("node  "))
    found = re.fullmatch(
        r"node        ready  (everstate://127\.0\.0\.1:(\d+)/default)"
        r"   metrics http://127\.0\.0\.1:(\d+)/metrics",
        node,
    )
    assert found is not None
    assert any(line.strip().endswith("log verify") for line in dev.lines)

    env_file = folder / "everstate.env"
    assert env_file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    shell = subprocess.run(
        [
            "sh",
            "-c",
            '. "$1"; for i in URL DATABASE_URL ADMIN_URL TOKEN; do eval echo \\$EVERSTATE_$i; done',
            "sh",
            env_file,
        ],
        capture_output=True,
        text=True,
        check=True,
        env={},
    )
    node_url, database_url, admin_url, token = shell.stdout.splitlines()
    assert (node_url, database_url) == (found[1], dsn)
    assert f"admin       ready  {admin_url}/openapi.json" in dev.lines
    assert digest_of(token) is not None
    assert not any(token in line for line in dev.lines)
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE things ()")

    assert dev.end(signal.SIGINT) == 130
    stops = [line for line in dev.lines if line.endswith(("stopped", "bye"))]
    assert stops == [
        "admin       stopped", "worker      stopped", "node | bye", "node        stopped",
        "postgresql  stopped",
    ]  # fmt: skip
    assert dev.error() == ""
    assert servers_of(folder / "postgresql") == set()

    again = start()
    again.until("Ctrl-C stops")
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT FROM things")
    assert f"EVERSTATE_TOKEN='{token}'" in env_file.read_text(), "shells that have it go on"
    assert again.end(signal.SIGTERM) == 0


def test_a_crashed_node_and_a_crashed_database_are_started_again(
    start: Starter, folder: Path
) -> None:
    dev = start()
    pid = dev.node_pid()
    os.kill(pid, signal.SIGKILL)
    dev.until(r"node        stopped \(killed by SIGKILL\), starting it again in \d\.\d s")
    assert dev.node_pid() != pid

    postmaster = int((folder / "postgresql" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    dev.until(r"postgresql  stopped \(killed by SIGKILL\), starting it again in \d\.\d s")
    dev.until("postgresql  ready")
    assert dev.end(signal.SIGINT) == 130


def test_a_node_that_fails_again_and_again_is_tried_with_growing_pauses(
    start: Starter, folder: Path
) -> None:
    once = f"""
import os, pathlib
flag = pathlib.Path({str(folder)!r}, "was-here")
if flag.exists():
    print("error: not now"); raise SystemExit(5)
flag.touch()
"""
    dev = start(MIGRATE, once + SERVE)
    pid = dev.node_pid()
    os.kill(pid, signal.SIGKILL)
    pauses = [float(dev.until(r"again in (\d\.\d) s")[1]) for _ in range(4)]
    assert pauses[3] > pauses[0]
    assert "node | error: not now" in dev.lines
    assert dev.end(signal.SIGTERM) == 0


def test_nothing_is_left_when_the_supervisor_is_killed_and_the_next_start_works(
    start: Starter,
) -> None:
    dev = start()
    node = int(dev.until(r"node \| pid (\d+)")[1])
    dev.until("Ctrl-C stops")
    dev.process.kill()
    dev.end()  # the end of the pipe: nobody who could write to it is alive
    again = start()
    again.until("Ctrl-C stops")
    assert not alive(node)
    assert again.end(signal.SIGINT) == 130


def test_a_second_ctrl_c_stops_at_once(start: Starter) -> None:
    deaf = SERVE.replace("lambda *_: stop.set()", 'lambda *_: print("no")')
    dev = start(MIGRATE, deaf)
    node = int(dev.until(r"node \| pid (\d+)")[1])
    dev.until("Ctrl-C stops")
    dev.process.send_signal(signal.SIGINT)
    dev.until(r"node \| no")
    assert dev.end(signal.SIGINT) == 130
    again = start()  # waits for whatever is still on its way down
    again.until("Ctrl-C stops")
    assert not alive(node)
    assert again.end(signal.SIGINT) == 130


def test_ctrl_c_during_the_start_stops_cleanly(start: Starter, folder: Path) -> None:
    dev = start("import time; print('slow', flush=True); time.sleep(60)")
    dev.until("slow")
    assert dev.end(signal.SIGINT) == 130
    assert dev.error() == ""
    assert servers_of(folder / "postgresql") == set()


@pytest.mark.parametrize("child", ["migrate", "serve"])
def test_a_child_that_refuses_at_the_first_start_ends_all_with_its_sentence_and_code(
    start: Starter, child: str
) -> None:
    refuse = """
import sys
print("working")
print("error: the server is PostgreSQL 12", file=sys.stderr)
print("hint: use PostgreSQL 15, 16, 17 or 18", file=sys.stderr)
sys.exit(4)
"""
    dev = start(**{"migrate": MIGRATE, "serve": SERVE} | {child: refuse})
    code, said = refusal(dev)
    assert code == 4
    assert said == [
        "error: the server is PostgreSQL 12",
        "hint: use PostgreSQL 15, 16, 17 or 18",
    ]
    assert any(line.endswith("| working") for line in dev.lines)
    assert dev.lines[-1] == "postgresql  stopped"


def test_a_child_that_crashes_at_the_first_start_ends_all(start: Starter) -> None:
    dev = start("import os; os.abort()")
    code, said = refusal(dev)
    assert code == 1
    assert said == [
        "error: migrate ended before it was ready (killed by SIGABRT); its lines are above"
    ]


def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(start: Starter) -> None:
    first = start()
    first.until("Ctrl-C stops")
    code, said = refusal(start())
    assert code == 4
    assert f"another everstate dev (pid {first.process.pid}) is running on" in said[0]
    assert first.end(signal.SIGTERM) == 0


def test_a_folder_of_something_else_is_refused_and_left_alone(start: Starter, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "thesis.tex").touch()
    code, said = refusal(start())
    assert code == 2
    assert said[0] == f"error: {folder} is not empty and was not made by everstate dev"
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_file_in_place_of_the_folder_is_refused(start: Starter, folder: Path) -> None:
    folder.touch()
    assert refusal(start())[0] == 2


def test_a_port_that_was_set_and_is_busy_is_refused(start: Starter, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refusal(start(EVERSTATE_GRPC_PORT=str(port)))
    assert code == 4
    assert said[0] == f"error: EVERSTATE_GRPC_PORT: the port {port} is busy"
    assert not (folder / "postgresql").exists()


def test_ports_that_were_set_are_taken_and_nonsense_is_refused(start: Starter) -> None:
    grpc = free_port("127.0.0.1")
    metrics = free_port("127.0.0.1", [grpc])
    dev = start(EVERSTATE_GRPC_PORT=str(grpc), EVERSTATE_METRICS_PORT=str(metrics))
    dev.until(f"127.0.0.1:{grpc}/default   metrics http://127.0.0.1:{metrics}/metrics")
    assert dev.end(signal.SIGTERM) == 0
    for nonsense in ("7400x", "65536", "-1"):
        assert refusal(start(EVERSTATE_GRPC_PORT=nonsense))[0] == 2
    assert refusal(start(EVERSTATE_GRPC_PORT=str(grpc), EVERSTATE_METRICS_PORT=str(grpc)))[0] == 2


def test_a_default_port_that_is_busy_is_replaced_by_a_free_one(start: Starter) -> None:
    # Somebody else's server on 7400 serves the purpose as well as ours.
    taken = None if is_port_busy("127.0.0.1", 7400) else socket.create_server(("127.0.0.1", 7400))
    try:
        dev = start()
        port = dev.until(r"the port 7400 is busy, taking (\d+)")[1]
        dev.until(f"everstate://127.0.0.1:{port}/default")
        assert dev.end(signal.SIGTERM) == 0
    finally:
        if taken is not None:
            taken.close()


def test_a_database_of_ones_own_is_used_and_its_password_never_shown(
    start: Starter, folder: Path
) -> None:
    url = "postgresql://me:s3cret-word@127.0.0.1:1/db"
    migrate = f"import os; print(os.environ['EVERSTATE_DATABASE_URL'] == {url!r})"
    migrate = migrate.replace("s3cret-word", "s3cret' + '-word")
    dev = start(migrate, EVERSTATE_DATABASE_URL=url)
    dev.until("Ctrl-C stops")
    assert "migrate | True" in dev.lines
    assert "postgresql  ready  postgresql://me:***@127.0.0.1:1/db" in dev.lines
    arguments = b"".join(
        path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
    )
    assert b"s3cret-word" not in arguments
    assert dev.end(signal.SIGTERM) == 0
    assert "s3cret-word" not in "\n".join(dev.lines) + dev.error()
    assert not (folder / "postgresql").exists()
    assert "s3cret-word" in (folder / "everstate.env").read_text()


SAY_APP = "import os; print('app', os.environ.get('EVERSTATE_APP'))"


def test_the_sample_is_registered_and_its_import_offered_but_not_run(start: Starter) -> None:
    dev = start(SAY_APP)
    dev.until("Ctrl-C stops")
    assert f"migrate | app {ROOT}/samples/repo_history/everstate.toml" in dev.lines
    assert any(" import samples/repo_history/" in line for line in dev.lines)
    assert dev.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("how", ["option", "variable"])
def test_ones_own_code_takes_the_place_of_the_sample(
    start: Starter, tmp_path: Path, how: str
) -> None:
    own = tmp_path / "own" / "everstate.toml"
    own.parent.mkdir()
    own.write_text("projections = []\n")
    if how == "option":
        dev = start(SAY_APP, SERVE, "--app", str(own.parent))
    else:
        dev = start(SAY_APP, EVERSTATE_APP=str(own))
    dev.until("Ctrl-C stops")
    assert f"migrate | app {own}" in dev.lines
    assert not any(" import " in line for line in dev.lines)
    assert dev.end(signal.SIGTERM) == 0


def test_code_that_is_not_there_is_refused_before_anything_is_made(
    start: Starter, folder: Path, tmp_path: Path
) -> None:
    code, said = refusal(start(MIGRATE, SERVE, "--app", str(tmp_path / "no.toml")))
    assert code == 2
    assert said[0] == f"error: user code: {tmp_path}/no.toml does not exist"
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    code, said = refusal(start(MIGRATE, SERVE, "--app", str(tmp_path / "pyproject.toml")))
    assert code == 2
    assert "[tool.everstate] is missing" in said[0]
    assert not folder.exists()


def test_no_sample_registers_none_and_offers_no_import(start: Starter) -> None:
    dev = start(SAY_APP, SERVE, "--no-sample")
    dev.until("Ctrl-C stops")
    assert "migrate | app None" in dev.lines
    assert not any(" import " in line for line in dev.lines)
    assert dev.end(signal.SIGTERM) == 0


def test_a_broken_cluster_is_reported_in_a_sentence(start: Starter, folder: Path) -> None:
    (folder / "postgresql").mkdir(parents=True)
    (folder / "postgresql" / "PG_VERSION").write_text("18\n")
    (folder / "everstate-dev.json").write_text(json.dumps({"format": 1}))
    code, said = refusal(start())
    assert code == 4
    assert "not a complete PostgreSQL cluster" in said[0]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p@x@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p@h1:1,h2:2/db", "postgresql://u:***@h1:1,h2:2/db"),
        (
            "postgresql:///db?user=u&password=p&port=1",
            "postgresql:///db?user=u&password=***&port=1",
        ),
        ("host=h password='p p' user=u", "host=h password=*** user=u"),
        ("postgresql://u@/db?host=/run", "postgresql://u@/db?host=/run"),
        *(
            (f"postgresql://u:p{mark}p@h/db", "the database of EVERSTATE_DATABASE_URL")
            for mark in "/?#"
        ),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert masked(url) == shown
