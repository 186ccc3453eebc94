"""Writes docs/reference/ from the code: settings, metrics, errors, the command line,
the HTTP API, the protocol.

`scripts/reference` writes the pages; `scripts/reference --check` exits 1 when one of them is not
what the code says. A house test does the same, so what these pages say is true.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from prometheus_client.metrics import MetricWrapperBase
from typer.main import get_command

from admin_ui import app as admin_api
from admin_ui.access import Route
from admin_ui.errors import STATUSES
from admin_ui.services import AdminSettings as AppSettings
from everstate.cli import EXIT_CODES, app
from everstate.settings import AdminSettings, DatabaseChoice, NodeSettings, WorkerSettings
from kernel import errors as tree
from kernel import telemetry
from sidecar_api.errors import CODES

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
PROTOS = ROOT / "protocols"
NOTE = "<!-- Written by scripts/reference from the code; edit the code, then run it. -->"

# Read by the command line and by `everstate dev`, not by the node.
OTHER_VARIABLES = (
    (
        "EVERSTATE_URL",
        "`everstate://127.0.0.1:7400/default`",
        "The node and the log that client commands speak to; `everstate+tls://` for TLS.",
    ),
    (
        "EVERSTATE_TLS_CA",
        "the system's",
        "File with the certificate authorities that client commands trust (PEM).",
    ),
    (
        "EVERSTATE_DEV_DIR",
        "`./.everstate`",
        "Folder of `everstate dev`; what is not set clients read from `everstate.env` in it.",
    ),
)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    yield line(head)
    yield line(tuple("---" for _ in head))
    yield from map(line, rows)
    yield ""


# -- settings ------------------------------------------------------------------------------------


def settings() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "Processes read their settings from environment variables; an option of the command"
    yield "line wins. A value that is not allowed ends the start with a sentence that names the"
    yield "variable."
    yield ""
    yield "## The database"
    yield ""
    yield "Used by every command that opens the database: `migrate`, `serve`, `work` and"
    yield "`admin`."
    yield ""
    yield from _fields(DatabaseChoice.model_fields)
    yield "## A journal node"
    yield ""
    yield "`everstate serve`; `everstate dev` hands them on to the node that it starts."
    yield ""
    shared = DatabaseChoice.model_fields
    yield from _fields({k: v for k, v in NodeSettings.model_fields.items() if k not in shared})
    yield "## A worker"
    yield ""
    yield "`everstate work`; `everstate dev` hands them on to the worker that it starts."
    yield ""
    yield from _fields({k: v for k, v in WorkerSettings.model_fields.items() if k not in shared})
    yield "## The admin"
    yield ""
    yield "`everstate admin`; `everstate dev` hands them on to the admin that it starts."
    yield ""
    yield from _fields({k: v for k, v in AdminSettings.model_fields.items() if k not in shared})
    yield "## Clients and `everstate dev`"
    yield ""
    rows = [(f"`{name}`", *rest) for name, *rest in OTHER_VARIABLES]
    yield from table(("variable", "default", "meaning"), rows)


def _fields(fields: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, field in fields.items():
        variable = field.validation_alias or f"EVERSTATE_{name.upper()}"
        default = "not set" if field.default in ("", None) else f"`{_shown(field.default)}`"
        rows.append((f"`{variable}`", default, _allowed(field), field.description or ""))
    yield from table(("variable", "default", "allowed", "meaning"), rows)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(field: Any) -> str:
    bounds: dict[str, Any] = {}
    for item in field.metadata:
        for name in ("ge", "gt", "le", "lt", "pattern"):
            if getattr(item, name, None) is not None:
                bounds[name] = getattr(item, name)
    if "pattern" in bounds:
        return ", ".join(f"`{word}`" for word in re.findall(r"[A-Z]+", bounds["pattern"]))
    kind = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    words = [kind.get(field.annotation, "file" if "Path" in str(field.annotation) else "text")]
    if "gt" in bounds:
        words.append(f"above {bounds['gt']}")
    if "ge" in bounds:
        words.append(f"from {bounds['ge']}")
    if "le" in bounds:
        words.append(f"to {bounds['le']}")
    return " ".join(words)


# -- metrics -------------------------------------------------------------------------------------


def metrics() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield "A node serves them at `/metrics` on `EVERSTATE_METRICS_PORT`, the admin (to a token) on"
    yield "`EVERSTATE_ADMIN_PORT`, in the text format of"
    yield "Prometheus. No label ever holds an id, a payload or a secret. What to watch:"
    yield "[Metrics and health](../operations/metrics-and-health.md)."
    yield ""
    rows = []
    for metric in vars(telemetry).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        found = next(iter(metric.describe()))
        name = found.name + ("_total" if found.type == "counter" else "")
        names = metric._labelnames  # noqa: SLF001 - there is no public way to ask
        labels = ", ".join(f"`{label}`" for label in names) or "none"
        meaning = found.documentation
        bounds = [b for b in getattr(metric, "_upper_bounds", []) if b != float("inf")]
        if found.type == "histogram":
            meaning += f" Buckets: {', '.join(f'{b:g}' for b in bounds)}."
        rows.append((f"`{name}`", found.type, labels, meaning))
    yield from table(("metric", "type", "labels", "meaning"), rows)


# -- errors --------------------------------------------------------------------------------------


def errors() -> Iterator[str]:
    yield "# Errors"
    yield ""
    yield "One tree for the server, the client and the command line. Over gRPC an error is a"
    yield "`google.rpc.Status` whose `ErrorInfo` has the code as `reason` and `everstate` as"
    yield "`domain`, over HTTP it is problem+json with the code; the Python client raises the class"
    yield "again. *Retry* says whether the very same call may simply be sent again;"
    yield "for appends see [Retries](../explanation/retries.md)."
    yield ""
    yield "A message never holds a payload, a password or a whole connection string."
    yield ""
    rows = []
    kinds = [
        kind
        for kind in vars(tree).values()
        if isinstance(kind, type) and issubclass(kind, tree.EverstateError)
    ]
    for kind in kinds:
        if kind is tree.EverstateError:
            continue  # its code is InternalError's
        meaning = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        rows.append(
            (
                f"`{kind.code}`",
                f"`{kind.__name__}`",
                CODES[kind].name,
                str(STATUSES[kind]),
                str(EXIT_CODES[kind]),
                "yes" if kind.retryable else "no",
                f"{meaning} *{kind.hint[0].upper()}{kind.hint[1:]}.*",
            )
        )
    head = (
        "code", "Python class", "gRPC status", "HTTP status", "exit code", "retry",
        "meaning and what to do",
    )  # fmt: skip
    yield from table(head, rows)
    yield "## Exit codes of the command line"
    yield ""
    yield from table(
        ("exit code", "meaning"),
        [
            ("0", "done"),
            ("1", "a negative finding (`log verify`, `migrate --check`), or an internal error"),
            ("2", "usage or bad input"),
            ("3", "not found"),
            ("4", "refused or conflict"),
            ("5", "unreachable"),
            ("6", "deadline"),
            ("130", "interrupted"),
        ],
    )


# -- the command line ----------------------------------------------------------------------------


def commands(group: Any = None, path: str = "everstate") -> Iterator[tuple[str, Any]]:
    """All commands that do something, with their full names."""
    if group is None:
        group = get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def cli() -> Iterator[str]:
    yield "# Command line"
    yield ""
    yield "`everstate --help` and `everstate COMMAND --help` say the same. With `--json` a command"
    yield 'prints its result on stdout and its error on stderr, as `{"error": {"code", "message",'
    yield '"field", "hint"}}`. Exit codes: [Errors](errors.md).'
    yield ""
    for path, command in commands():
        shown = [p for p in command.params if not getattr(p, "hidden", False)]
        arguments = [p for p in shown if not p.opts[0].startswith("-")]
        options = [p for p in shown if p.opts[0].startswith("-") and p.name != "help"]
        words = " ".join(_argument(p) for p in arguments)
        yield f"## {path}"
        yield ""
        yield f"`{path}{' ' if words else ''}{words}{' [OPTION…]' if options else ''}`"
        yield ""
        for paragraph in (command.help or "").split("\n\n"):
            yield " ".join(paragraph.split())
            yield ""
        if arguments:
            yield from table(
                ("argument", "meaning"), [(f"`{_argument(p)}`", p.help or "") for p in arguments]
            )
        if options:
            yield from table(
                ("option", "default", "meaning"),
                [(_option(p), _default(p), p.help or "") for p in options],
            )


def _argument(param: Any) -> str:
    name = (param.metavar or param.name.upper()).strip("[]")
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in param.opts)
    kind = getattr(param.type_descriptor.annotation, "__name__", "text")
    value = {"int": "whole number", "float": "number", "str": "text", "Path": "file"}
    return names if param.is_flag else f"{names} {value.get(kind, 'file')}"


def _default(param: Any) -> str:
    if param.is_flag or param.default in (None, ""):
        return ""
    return f"`{param.default:g}`" if isinstance(param.default, float) else f"`{param.default}`"


# -- the HTTP API --------------------------------------------------------------------------------


def http() -> Iterator[str]:
    yield "# HTTP API"
    yield ""
    yield "`everstate admin`, default port 7480. `/openapi.json` says the same to programs. Tokens,"
    yield "errors, pages and idempotency keys:"
    yield "[The admin and tokens](../operations/admin-and-tokens.md); values, conditions and CSV:"
    yield "[Query read models](../how-to/query-read-models.md). Wherever GET is, HEAD is too."
    yield "A role may do what those before it may: viewer, operator, admin."
    yield ""
    app = admin_api.api(admin_api.services(cast(Any, None), AppSettings()))
    document = app.openapi_schema or {}
    ours = [route for route in app.routes if isinstance(route, Route)]
    routes = {(route.path, method): route.access for route in ours for method in route.methods}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            access = routes[path, method.upper()]
            yield f"## {method.upper()} {path}"
            yield ""
            free = "; in `everstate dev` none from this machine" if access.open_in_dev else ""
            yield f"Role: {access.role.word}{free}."
            yield ""
            for paragraph in operation["description"].split("\n\n"):
                yield " ".join(paragraph.split())
                yield ""
            rows = [_parameter(p) for p in operation.get("parameters", ()) if p["in"] != "header"]
            if rows:
                yield from table(("parameter", "in", "allowed", "meaning"), rows)
            if fields := _body(document, operation):
                yield from table(("field of the body", "allowed", "default", "meaning"), fields)


def _parameter(parameter: dict[str, Any]) -> tuple[str, ...]:
    schema = parameter["schema"]
    meaning = parameter.get("description", "")
    if schema.get("default") not in (None, ""):
        meaning = f"{meaning} Default: `{schema['default']}`.".strip()
    name = f"`{parameter['name']}`" + (" (required)" if parameter.get("required") else "")
    return name, parameter["in"], _schema(schema), meaning


def _body(document: dict[str, Any], operation: dict[str, Any]) -> list[tuple[str, ...]]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return []
    options = [content["schema"], *content["schema"].get("anyOf", ())]
    reference = next(option["$ref"] for option in options if "$ref" in option)
    model = document["components"]["schemas"][reference.rpartition("/")[2]]
    return [
        (
            f"`{name}`",
            _schema(field),
            "required" if name in model.get("required", ()) else f"`{field.get('default')}`",
            field.get("description", ""),
        )
        for name, field in model["properties"].items()
    ]


def _schema(schema: dict[str, Any]) -> str:
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    first = options[0]
    if "$ref" in first:
        return first["$ref"].rpartition("/")[2]
    if "enum" in first:
        return ", ".join(f"`{value}`" for value in first["enum"])
    kind = {"integer": "whole number", "string": "text", "boolean": "`true`, `false`"}
    words = [kind.get(first.get("type", ""), first.get("type", "any"))]
    if first.get("type") == "array":
        words = [f"list of {_schema(first['items'])}"]
    if "minimum" in first:
        words.append(f"from {first['minimum']}")
    if "exclusiveMinimum" in first:
        words.append(f"above {first['exclusiveMinimum']}")
    if "maximum" in first:
        words.append(f"to {first['maximum']}")
    if "maxLength" in first:
        words.append(f"of at most {first['maxLength']} characters")
    if "maxItems" in first:
        words.append(f"of at most {first['maxItems']}")
    return " ".join(words)


# -- the protocol --------------------------------------------------------------------------------

_FIELD = re.compile(r"(?:(repeated|optional) )?([\w.]+) (\w+) = (\d+);")
_RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")


def protocol() -> Iterator[str]:
    yield "# Protocol"
    yield ""
    yield "gRPC, `protocols/` in the repository. Numbers and names of fields do not change; later"
    yield "versions only add. A node offers server reflection and the standard health service too."
    yield ""
    for path in sorted(PROTOS.glob("everstate/**/*.proto")):
        yield from _proto(path)


def _proto(path: Path) -> Iterator[str]:
    """A page section of a .proto file: its comments, calls and messages, in the file's order."""
    text = path.read_text(encoding="utf-8")
    package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
    assert package is not None
    head, _, rest = text.partition("syntax =")
    yield f"## {package[1]}"
    yield ""
    yield from _paragraphs([line.removeprefix("//").strip() for line in head.splitlines()])
    comment: list[str] = []
    rows: list[tuple[str, ...]] = []
    oneof = ""
    for raw in rest.splitlines():
        line = raw.strip()
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        said, comment = comment, []
        if found := re.match(r"(service|message) (\w+) \{(\})?", line):
            yield f"### {found[1]} {found[2]}"
            yield ""
            yield from _paragraphs(said)
            if found[3]:
                yield "No fields."
                yield ""
        elif found := _RPC.match(line):
            stream = ["stream " if found[i] else "" for i in (2, 4)]
            yield f"#### {found[1]}"
            yield ""
            yield f"`{found[1]}({stream[0]}{found[3]}) → {stream[1]}{found[5]}`"
            yield ""
            yield from _paragraphs(said)
        elif found := re.match(r"oneof (\w+) \{", line):
            oneof = found[1]
        elif found := _FIELD.match(line):
            kind = f"{found[1]} {found[2]}" if found[1] else found[2]
            meaning = " ".join(said) + (f" (one of `{oneof}`)" if oneof else "")
            rows.append((found[4], f"`{found[3]}`", kind, meaning.strip()))
        elif line == "}" and oneof:
            oneof = ""
        elif line == "}" and rows:
            yield from table(("no.", "field", "type", "meaning"), rows)
            rows = []


def _paragraphs(lines: list[str]) -> Iterator[str]:
    for block in "\n".join(lines).strip().split("\n\n"):
        if block.strip():
            yield from block.strip().splitlines()
            yield ""


# -- pages ---------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[], Iterator[str]]] = {
    "settings.md": settings,
    "metrics.md": metrics,
    "errors.md": errors,
    "cli.md": cli,
    "http.md": http,
    "protocol.md": protocol,
}


def page(name: str) -> str:
    """The text of a page as the code has it now."""
    return f"{NOTE}\n\n" + "\n".join(WRITERS[name]()).rstrip() + "\n"


def stale() -> list[str]:
    """The pages that are missing or not what the code says."""
    found = []
    for name in WRITERS:
        path = PAGES / name
        if not path.exists() or path.read_text(encoding="utf-8") != page(name):
            found.append(name)
    return found


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        old = stale()
        for name in old:
            print(f"error: docs/reference/{name} is not what the code says", file=sys.stderr)
        if old:
            print("hint: run `scripts/reference`", file=sys.stderr)
        return 1 if old else 0
    if sys.argv[1:]:
        print("usage: scripts/reference [--check]", file=sys.stderr)
        return 2
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in WRITERS:
        (PAGES / name).write_text(page(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
