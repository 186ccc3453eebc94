"""Operations: plan, review, apply, watch, receipt, undo."""
