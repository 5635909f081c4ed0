"""The operator's Prometheus metrics. No label holds text that an agent or a user wrote, except names.

One instance per process, on a registry of its own; every measurement is a method of ``Metrics``.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from savepoint.contract.vocabulary import CheckpointOutcome, Reason
from savepoint.errors import SavepointError

from savepoint_operator.rules.attempt import TRIGGERS
from savepoint_operator.rules.status.restore_status import SUCCESSFUL_OUTCOMES
from savepoint_operator.rules.status.texts import NEXT_STEP

DURATION_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
PAUSE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_OUTCOMES = (
    SUCCESSFUL_OUTCOMES
    | set(NEXT_STEP)
    | {CheckpointOutcome.READY, CheckpointOutcome.UNCHANGED, CheckpointOutcome.FAILED}
    | {Reason.ROLLED_BACK, Reason.TIMEOUT, Reason.POD_GONE, Reason.AMBIGUOUS_AGENT}
)


def _known(reason: str) -> str:
    """Return the reason if the project defines it, else "Other": a pod must not create any number of time series."""
    return reason if reason in _OUTCOMES or any(reason == each.reason for each in _errors(SavepointError)) else "Other"


def _errors(root: type[SavepointError]) -> Iterable[type[SavepointError]]:
    yield root
    for each in root.__subclasses__():
        yield from _errors(each)


class Metrics:
    """All metrics of the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._checkpoints = Counter(
            "savepoint_checkpoints", "Checkpoint attempts by result.", ("result", "trigger"), registry=registry
        )
        self._duration = Histogram(
            "savepoint_checkpoint_seconds",
            "Time from order to commit.",
            ("trigger",),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._pause = Histogram(
            "savepoint_pause_seconds", "How long agents were paused.", buckets=PAUSE_BUCKETS, registry=registry
        )
        self._uploaded = Counter(
            "savepoint_uploaded_bytes", "Bytes that checkpoints uploaded to stores.", registry=registry
        )
        self._logical = Counter(
            "savepoint_logical_bytes", "Bytes of state in committed checkpoints.", registry=registry
        )
        self._restores = Counter(
            "savepoint_restores", "Restores of starting pods by outcome.", ("outcome",), registry=registry
        )
        self._restore_seconds = Histogram(
            "savepoint_restore_seconds", "Duration of restores.", buckets=DURATION_BUCKETS, registry=registry
        )
        self._age = Gauge(
            "savepoint_recovery_point_age_seconds",
            "Age of the recovery point.",
            ("namespace", "agent"),
            registry=registry,
        )
        self._agents = Gauge("savepoint_agents", "Agents by state.", ("state",), registry=registry)
        self._stores = Gauge("savepoint_store_ready", "1 if the store can be used.", ("store",), registry=registry)
        self._queue = Gauge("savepoint_queue_keys", "Keys waiting in the reconcile queue.", registry=registry)
        self._faults = Counter(
            "savepoint_reconcile_faults", "Failed reconciles by reason.", ("reason",), registry=registry
        )
        self._missed = Counter("savepoint_watch_missed", "Changes that no watch delivered.", registry=registry)
        self._collected = Counter(
            "savepoint_collected_bytes", "Bytes that collection removed from stores.", registry=registry
        )
        self._leading = Gauge("savepoint_leading", "1 while this process leads.", registry=registry)

    def text(self) -> bytes:
        """Return the metrics in the exposition format."""
        return generate_latest(self.registry)

    def checkpoint(self, result: str, trigger: str, seconds: float | None = None) -> None:
        """Count an ended attempt. ``result``: Ready, Unchanged, or the reason of a failure."""
        trigger = trigger if trigger in TRIGGERS else "Unknown"
        self._checkpoints.labels(_known(result), trigger).inc()
        if seconds is not None:
            self._duration.labels(trigger).observe(seconds)

    def committed_bytes(self, uploaded: int, logical: int) -> None:
        """Count the bytes of a committed checkpoint."""
        self._uploaded.inc(uploaded)
        self._logical.inc(logical)

    def paused(self, milliseconds: int | None) -> None:
        """Observe how long the agent was paused."""
        if milliseconds is not None:
            self._pause.observe(milliseconds / 1000)

    def restore_ended(self, outcome: str, milliseconds: int) -> None:
        """Count the restore of a starting pod."""
        self._restores.labels(_known(outcome)).inc()
        self._restore_seconds.observe(milliseconds / 1000)

    def collected(self, count: int) -> None:
        """Count bytes that collection removed from a store."""
        self._collected.inc(count)

    def missed(self, count: int) -> None:
        """Count changes that a listing found and no watch had delivered."""
        self._missed.inc(count)

    def fault(self, reason: str) -> None:
        """Count a failed reconcile that is requeued."""
        self._faults.labels(reason).inc()

    def set_gauges(self, ages: Iterable[tuple[str, str, float]], states: Iterable[str], waiting: int) -> None:
        """Set the gauges: ages of recovery points, states of agents, and the number of queued keys."""
        self._age.clear()
        for namespace, agent, seconds in ages:
            self._age.labels(namespace, agent).set(seconds)
        self._agents.clear()
        for state in states:
            self._agents.labels(state or "Unknown").inc()
        self._queue.set(waiting)

    def store(self, name: str, ready: bool) -> None:
        """Set whether the store can be used."""
        self._stores.labels(name).set(1 if ready else 0)

    def leading(self, now: bool) -> None:
        """Set whether this process leads."""
        self._leading.set(1 if now else 0)
