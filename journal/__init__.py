"""The journal: appends, loads, reads and proofs of durable, totally ordered events."""
