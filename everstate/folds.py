"""What writers of folds import; see docs/how-to/folds.md."""

from __future__ import annotations

from snapshots.folds import Fold, FoldEvent

__all__ = ["Fold", "FoldEvent"]
