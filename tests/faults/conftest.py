"""Servers that a test may break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.devdb import DevDatabase
from tests.support import migrated


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[DevDatabase]:
    """A migrated PostgreSQL of its own, to be killed."""
    with migrated(tmp_path) as server:
        yield server
