"""What writers of projections import; see docs/how-to/write-a-projection.md."""

from __future__ import annotations

from projections.model import ProjectedEvent, Projection, StatementError, Tx

__all__ = ["ProjectedEvent", "Projection", "StatementError", "Tx"]
