"""What the operator counts, for Prometheus. No label holds anything that an agent or a user wrote, but names.

One instance per process, on a registry of its own; whoever counts calls a method here.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from savepoint.errors import SavepointError

from savepoint_operator.rules.attempt import TRIGGERS
from savepoint_operator.rules.status.restore_status import GOOD
from savepoint_operator.rules.status.texts import NEXT_STEP

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_ENDS = GOOD | set(NEXT_STEP) | {"Ready", "Unchanged", "Failed", "RolledBack", "Timeout", "PodGone", "AmbiguousAgent"}
PAUSES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def _known(reason: str) -> str:
    """What a pod tells becomes a label only where it is a word of the project's: any other would be a series more."""
    return reason if reason in _ENDS or any(reason == each.reason for each in _errors(SavepointError)) else "Other"


def _errors(root: type[SavepointError]) -> Iterable[type[SavepointError]]:
    yield root
    for each in root.__subclasses__():
        yield from _errors(each)


class Metrics:
    """All of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._checkpoints = Counter(
            "savepoint_checkpoints", "Attempts by how they ended.", ("result", "trigger"), registry=registry
        )
        self._duration = Histogram(
            "savepoint_checkpoint_seconds", "From order to commit.", ("trigger",), buckets=SECONDS, registry=registry
        )
        self._pause = Histogram(
            "savepoint_pause_seconds", "How long agents were held.", buckets=PAUSES, registry=registry
        )
        self._uploaded = Counter(
            "savepoint_uploaded_bytes", "Bytes that checkpoints moved to stores.", registry=registry
        )
        self._logical = Counter(
            "savepoint_logical_bytes", "Bytes of state in committed checkpoints.", registry=registry
        )
        self._restores = Counter("savepoint_restores", "Starts of pods by outcome.", ("outcome",), registry=registry)
        self._restore_seconds = Histogram(
            "savepoint_restore_seconds", "How long restores took.", buckets=SECONDS, registry=registry
        )
        self._age = Gauge(
            "savepoint_recovery_point_age_seconds",
            "Age of the recovery point.",
            ("namespace", "agent"),
            registry=registry,
        )
        self._agents = Gauge("savepoint_agents", "Agents by state.", ("state",), registry=registry)
        self._stores = Gauge("savepoint_store_ready", "Whether a store can be used.", ("store",), registry=registry)
        self._queue = Gauge("savepoint_queue_keys", "Keys that wait to be looked at.", registry=registry)
        self._faults = Counter(
            "savepoint_reconcile_faults", "Looks that failed, by reason.", ("reason",), registry=registry
        )
        self._missed = Counter("savepoint_watch_missed", "Changes that no watch told.", registry=registry)
        self._collected = Counter("savepoint_collected_bytes", "Bytes removed from stores.", registry=registry)
        self._leading = Gauge("savepoint_leading", "1 while this process leads.", registry=registry)

    def text(self) -> bytes:
        """In the exposition format."""
        return generate_latest(self.registry)

    def checkpoint(self, result: str, trigger: str, seconds: float | None = None) -> None:
        """``result``: Ready, Unchanged, or the reason of a failure."""
        trigger = trigger if trigger in TRIGGERS else "Unknown"
        self._checkpoints.labels(_known(result), trigger).inc()
        if seconds is not None:
            self._duration.labels(trigger).observe(seconds)

    def moved(self, uploaded: int, logical: int) -> None:
        """Bytes of one committed checkpoint."""
        self._uploaded.inc(uploaded)
        self._logical.inc(logical)

    def paused(self, milliseconds: int | None) -> None:
        """How long the agent was held."""
        if milliseconds is not None:
            self._pause.observe(milliseconds / 1000)

    def restored(self, outcome: str, milliseconds: int) -> None:
        """One pod's start."""
        self._restores.labels(_known(outcome)).inc()
        self._restore_seconds.observe(milliseconds / 1000)

    def collected(self, count: int) -> None:
        """Bytes removed from a store."""
        self._collected.inc(count)

    def missed(self, count: int) -> None:
        """Changes that a listing found and no watch had told."""
        self._missed.inc(count)

    def fault(self, reason: str) -> None:
        """A look failed and comes again."""
        self._faults.labels(reason).inc()

    def standing(self, ages: Iterable[tuple[str, str, float]], states: Iterable[str], waiting: int) -> None:
        """Everything that is a state rather than a count: recovery points, agents by state, keys that wait."""
        self._age.clear()
        for namespace, agent, seconds in ages:
            self._age.labels(namespace, agent).set(seconds)
        self._agents.clear()
        for state in states:
            self._agents.labels(state or "Unknown").inc()
        self._queue.set(waiting)

    def store(self, name: str, ready: bool) -> None:
        """Whether a store can be used."""
        self._stores.labels(name).set(1 if ready else 0)

    def leading(self, now: bool) -> None:
        """Whether this process leads."""
        self._leading.set(1 if now else 0)
