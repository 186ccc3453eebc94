"""Metrics (Prometheus) and structured logs. Neither ever holds a payload, an id or a secret.

`METRICS` is the one list of metrics; docs/reference/metrics.md is generated from it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY: Final = CollectorRegistry()

_SECONDS = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0,
    5.0, 10.0,
)  # fmt: skip

appends = Counter("everstate_appends", "Appends that were written.", ["log"], registry=REGISTRY)
events_appended = Counter(
    "everstate_events_appended", "Events that were written.", ["log"], registry=REGISTRY
)
duplicates = Counter(
    "everstate_appends_duplicate",
    "Appends that had been written before and got the first result.",
    ["log"],
    registry=REGISTRY,
)
refused = Counter(
    "everstate_appends_refused",
    "Appends that were refused or failed, by code of the error tree.",
    ["log", "reason"],
    registry=REGISTRY,
)
batch_appends = Histogram(
    "everstate_batch_appends",
    "Appends that shared one commit.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    registry=REGISTRY,
)
commit_seconds = Histogram(
    "everstate_commit_seconds",
    "Time from sending a batch to the database until it was durable.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
reads = Counter("everstate_reads", "Reads begun, by call.", ["call"], registry=REGISTRY)
events_read = Counter(
    "everstate_events_read", "Events sent to readers, by call.", ["call"], registry=REGISTRY
)
in_flight = Gauge(
    "everstate_appends_in_flight",
    "Appends that wait for their outcome.",
    ["log"],
    registry=REGISTRY,
)
held_bytes = Gauge(
    "everstate_appends_held_bytes",
    "Memory accounted to waiting appends, in bytes.",
    ["log"],
    registry=REGISTRY,
)
pool_connections = Gauge(
    "everstate_pool_connections", "Database connections, by state.", ["state"], registry=REGISTRY
)
head = Gauge(
    "everstate_log_head", "Position of the newest event this node knows of.", ["log"],
    registry=REGISTRY,
)  # fmt: skip
chunks_ahead = Gauge(
    "everstate_chunks_ahead",
    "Chunks attached wholly ahead of the head; at 0 the next roll-over would wait.",
    ["log"],
    registry=REGISTRY,
)
xmin_age_seconds = Gauge(
    "everstate_database_xmin_age_seconds",
    "Age of the oldest transaction or snapshot that holds back vacuum.",
    registry=REGISTRY,
)
recorded_ahead_seconds = Gauge(
    "everstate_recorded_at_ahead_seconds",
    "By how much the newest event's time is ahead of this node's clock.",
    ["log"],
    registry=REGISTRY,
)
subscribers = Gauge(
    "everstate_subscribers", "Subscriptions that are open.", ["log"], registry=REGISTRY
)
fell_behind = Counter(
    "everstate_subscribers_fell_behind",
    "Times that a caught-up subscriber fell behind the memory of the newest events.",
    ["log"],
    registry=REGISTRY,
)
tail_bytes = Gauge(
    "everstate_tail_bytes",
    "Memory accounted to the newest events, kept for subscribers.",
    ["log"],
    registry=REGISTRY,
)
tail_encoded = Counter(
    "everstate_tail_events_encoded",
    "Events encoded for subscribers out of memory; each once, however many get it.",
    ["log"],
    registry=REGISTRY,
)
group_delivered = Counter(
    "everstate_group_delivered",
    "Events sent to members of consumer groups, every attempt.",
    ["group"],
    registry=REGISTRY,
)
group_redelivered = Counter(
    "everstate_group_redelivered",
    "Deliveries that were not the first attempt.",
    ["group"],
    registry=REGISTRY,
)
group_settled = Counter(
    "everstate_group_settled",
    "Deliveries settled, by reason: ack, nack, park, timeout; lost: too late, of no effect.",
    ["group", "reason"],
    registry=REGISTRY,
)
group_members = Gauge(
    "everstate_group_members", "Members connected to this node.", ["group"], registry=REGISTRY
)
group_partitions = Gauge(
    "everstate_group_partitions",
    "Partitions that members connected to this node have.",
    ["group"],
    registry=REGISTRY,
)
group_lag_events = Gauge(
    "everstate_group_lag_events",
    "Events of the log after the place of the group, matching or not.",
    ["group"],
    registry=REGISTRY,
)
group_lag_bytes = Gauge(
    "everstate_group_lag_bytes", "Their payload, in bytes.", ["group"], registry=REGISTRY
)
group_lag_seconds = Gauge(
    "everstate_group_lag_seconds", "Age of the first of them.", ["group"], registry=REGISTRY
)
group_parked = Gauge(
    "everstate_group_parked",
    "Events put aside: parked, held behind a parked one, being replayed.",
    ["group"],
    registry=REGISTRY,
)
rebuild_progress = Gauge(
    "everstate_projection_rebuild_progress",
    "How far a build of a projection is that is not live yet: 0 to 1.",
    ["projection", "version"],
    registry=REGISTRY,
)
rpcs = Counter(
    "everstate_rpcs", "Finished gRPC calls, by method and status.", ["method", "status"],
    registry=REGISTRY,
)  # fmt: skip
http_requests = Counter(
    "everstate_http_requests",
    "Finished HTTP requests of the admin, by the route's name and status.",
    ["call", "status"],
    registry=REGISTRY,
)
projection_events = Counter(
    "everstate_projection_events", "Events that projections have applied here.",
    ["projection", "version"], registry=REGISTRY,
)  # fmt: skip
projection_parks = Counter(
    "everstate_projection_parks", "Events that projections could not apply and passed over here.",
    ["projection", "version"], registry=REGISTRY,
)  # fmt: skip
projection_batch_seconds = Histogram(
    "everstate_projection_batch_seconds",
    "Time to apply and commit a batch of events.",
    ["projection"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
projection_lag_events = Gauge(
    "everstate_projection_lag_events",
    "Positions between what all segments have applied and the log's head.",
    ["projection", "version"],
    registry=REGISTRY,
)
projection_lag_bytes = Gauge(
    "everstate_projection_lag_bytes",
    "Payload bytes between what all segments have applied and the log's head.",
    ["projection", "version"],
    registry=REGISTRY,
)
projection_lag_seconds = Gauge(
    "everstate_projection_lag_seconds",
    "Age of the oldest event that a segment has not applied.",
    ["projection", "version"],
    registry=REGISTRY,
)
projection_parked = Gauge(
    "everstate_projection_parked", "Events that are parked.", ["projection", "version"],
    registry=REGISTRY,
)  # fmt: skip
projection_halted = Gauge(
    "everstate_projection_halted", "Segments that halted at an event they could not apply.",
    ["projection", "version"], registry=REGISTRY,
)  # fmt: skip
projection_leases = Gauge(
    "everstate_projection_leases", "Segments that this worker works on.",
    ["projection", "version"], registry=REGISTRY,
)  # fmt: skip
operations_running = Gauge(
    "everstate_operations_running", "Operations that this worker runs.", registry=REGISTRY
)
operations_state = Gauge(
    "everstate_operations",
    "Operations that have not ended, by kind and state, as a worker sees them.",
    ["kind", "state"],
    registry=REGISTRY,
)
operations_ended = Counter(
    "everstate_operations_ended", "Operations that ended or stand still here, by kind and state.",
    ["kind", "state"], registry=REGISTRY,
)  # fmt: skip
operation_items = Counter(
    "everstate_operation_items", "Items that operations have settled here, by what became of them.",
    ["kind", "state"], registry=REGISTRY,
)  # fmt: skip
operation_step_seconds = Histogram(
    "everstate_operation_step_seconds",
    "Time of a step of an operation: its transaction, or a look at a task.",
    ["kind"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
snapshots_purged = Counter(
    "everstate_snapshots_purged", "Removed snapshots that were deleted for good here.",
    registry=REGISTRY,
)  # fmt: skip
operation_waits = Counter(
    "everstate_operation_waits",
    "Times that an operation slowed down or waited for others.",
    ["kind", "reason"],
    registry=REGISTRY,
)
audit_backlog = Gauge(
    "everstate_audit_backlog", "Audit events that are not in the log _system yet.",
    registry=REGISTRY,
)  # fmt: skip
audit_published = Counter(
    "everstate_audit_published", "Audit events appended to the log _system here.",
    registry=REGISTRY,
)  # fmt: skip
audit_refused = Counter(
    "everstate_audit_refused", "Times that the log _system refused an audit event; it waits.",
    registry=REGISTRY,
)  # fmt: skip
commit_p99 = Gauge(  # workers slow operations down by it
    "everstate_commit_p99_seconds",
    "99th percentile of the time of a commit over the last ten seconds or so; 0: none.",
    registry=REGISTRY,
)


class Recent:
    """Durations of the last seconds, as many as fit; for a percentile of now, not of all time."""

    def __init__(self, window_s: float = 10.0, most: int = 4_000) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, float]] = deque(maxlen=most)

    def add(self, seconds: float) -> None:
        """Notes a duration."""
        self._seen.append((time.monotonic(), seconds))

    def p99(self) -> float:
        """The 99th percentile, in seconds; 0: there was none."""
        since = time.monotonic() - self._window_s
        while self._seen and self._seen[0][0] < since:
            self._seen.popleft()
        found = sorted(seconds for _, seconds in self._seen)
        return found[min(len(found) * 99 // 100, len(found) - 1)] if found else 0.0


recent_commits: Final = Recent()
"""Commits of appends in this process."""


def configure_logging(*, json_lines: bool, level: str = "INFO") -> None:
    """Structured logs on standard error: JSON lines, or text for people."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    # Libraries log through the standard library: their lines get the same form.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
