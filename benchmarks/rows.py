"""Rows of benchmarks/results/latest.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One result.

    ``ratio`` = value / value of the row ``reference``, both of one ``run`` (UTC time it began).
    A row ``NAME:WHAT`` repeats NAME against another reference.
    """

    id: str
    value: float
    unit: str
    p50_ms: float | None
    p99_ms: float | None
    reference: str | None
    ratio: float | None
    run: str
    commit: str
    machine: str

    def as_json(self) -> dict[str, Any]:
        """The row as an object of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Row:
        """The row of an object of the file."""
        return cls(**{field.name: found[field.name] for field in fields(cls)})
