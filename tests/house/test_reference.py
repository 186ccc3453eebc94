"""docs/reference/ is what the code says; `scripts/reference` writes it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from everstate.settings import AdminSettings, NodeSettings, WorkerSettings
from kernel import telemetry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """scripts/reference.py as a module."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_up_to_date(reference: ModuleType) -> None:
    assert reference.stale() == [], "run `scripts/reference`"


def test_a_page_that_the_code_left_behind_is_found(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in reference.WRITERS:
        (tmp_path / name).write_text(reference.page(name), encoding="utf-8")
    monkeypatch.setattr(reference, "PAGES", tmp_path)
    assert reference.stale() == []
    (tmp_path / "errors.md").unlink()
    page = tmp_path / "metrics.md"
    page.write_text(page.read_text("utf-8").replace("everstate_reads_total", "x"), "utf-8")
    assert reference.stale() == ["metrics.md", "errors.md"]


def test_every_setting_and_metric_has_its_row(reference: ModuleType) -> None:
    settings, metrics = reference.page("settings.md"), reference.page("metrics.md")
    for name, field in [
        *NodeSettings.model_fields.items(),
        *AdminSettings.model_fields.items(),
        *WorkerSettings.model_fields.items(),
    ]:
        assert f"| `{field.validation_alias or 'EVERSTATE_' + name.upper()}` |" in settings
        assert field.description, name
    for family in telemetry.REGISTRY.collect():
        assert re.search(rf"\| `{family.name}(_total)?` \|", metrics)
        assert family.documentation.endswith("."), family.name


def test_every_call_and_message_of_the_protocol_has_its_part(reference: ModuleType) -> None:
    page = reference.page("protocol.md")
    protos = list((ROOT / "protocols" / "everstate").rglob("*.proto"))
    assert protos
    fields = 0
    for path in protos:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^message (\w+)", text, re.MULTILINE):
            assert f"### message {name}\n" in page
        for name in re.findall(r"^  rpc (\w+)", text, re.MULTILINE):
            assert re.search(rf"#### {name}\n\n`{name}\(.*\n\n[A-Z]", page), (
                "a call says its contract"
            )
        kind = r"^ +(?:(?:repeated|optional) )?[\w.]+ (\w+) = (\d+);"
        fields += len(re.findall(kind, text, re.MULTILINE))
    assert page.count("\n| ") - page.count("\n| no. ") - page.count("\n| --- ") == fields


def test_no_label_of_a_metric_is_for_an_id_or_a_payload() -> None:
    labels = {
        label
        for metric in telemetry.REGISTRY._collector_to_names
        for label in getattr(metric, "_labelnames", ())
    }
    assert labels <= {
        "log",
        "group",
        "reason",
        "call",
        "state",
        "method",
        "status",
        "projection",
        "version",
        "kind",
    }
