"""How an agent stands: Protected, AtRisk, Unprotected, Restoring or Completed, and why. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from savepoint_operator.model.objects import Interval, Pod
from savepoint_operator.rules.status.texts import ago

PERIODS_MISSED: Final = 3
"""How many periods old the recovery point may be."""
SLACK_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 60.0
"""How long a running pod may be without its sidecar's connection."""
DAMAGED: Final = frozenset({"RollbackDetected", "IntegrityError"})
"""Failures after which the next start cannot be trusted to restore, whether a pod runs or not."""


@dataclass(frozen=True)
class Facts:
    """What is known of the agent now."""

    pods: tuple[Pod, ...]
    connected: bool
    restoring: str
    """Why or what the newest pod restores or waits for; empty when it does not."""
    refused: str
    """Why the newest pod's last start has failed; empty when it has not."""
    completed: bool
    latest_name: str
    recovery_point: datetime | None
    failure: tuple[str, str] | None
    """Reason and message of the last failure, if nothing has gone well since."""
    lost_node: str
    interval: Interval | None
    """None: no checkpoints by time, or suspended."""
    silent_seconds: float
    """Since the sidecar was last connected, or since the pod or the leader started."""
    now: datetime


@dataclass(frozen=True)
class Protection:
    """``reason`` is the state."""

    reason: str
    message: str

    @property
    def holds(self) -> bool:
        """Condition Protected."""
        return self.reason in ("Protected", "Completed")


def judge(facts: Facts) -> Protection:  # noqa: PLR0911, PLR0912 - one per state
    """The first sentence that is true, the gravest first."""
    bare = next((pod for pod in facts.pods if pod.live and not pod.injected), None)
    if bare is not None:
        return Protection(
            "Unprotected",
            f"Pod {bare.meta.name} carries the label but was not injected: it was labelled after it was created, or "
            "the webhook did not see it. Delete the pod so that its owner makes it anew.",
        )
    live = [pod for pod in facts.pods if pod.live]
    since = f" Last checkpoint: {facts.latest_name}." if facts.latest_name else ""
    weak = "AtRisk" if facts.latest_name else "Unprotected"
    blocked = next((pod for pod in reversed(live) if pod.blocked), None)
    if blocked is not None:
        return Protection(weak, f"Pod {blocked.meta.name}: {blocked.blocked}{since}")
    if facts.restoring:
        return Protection("Restoring", facts.restoring)
    if facts.refused and live and not facts.connected:
        return Protection(weak, f"{facts.refused}{since}")
    if facts.failure is not None and facts.failure[0] in DAMAGED:
        return Protection(weak, f"{facts.failure[0]}: {facts.failure[1]}{since}")
    if facts.completed:
        return Protection("Completed", "The run has ended; the next one starts fresh.")
    if not live:
        if facts.latest_name:
            return Protection("Protected", f"No pod runs; the next one restores {facts.latest_name}.")
        return Protection("Unprotected", "No pod runs, and there is no checkpoint.")
    if facts.lost_node:
        return Protection("AtRisk", f"Node {facts.lost_node} is lost.{since}")
    if not facts.connected and facts.silent_seconds > CONNECT_SECONDS:
        return Protection(
            weak,
            f"The sidecar of pod {live[-1].meta.name} is not connected: see its container savepoint-sidecar.{since}",
        )
    if facts.failure is not None:
        return Protection("AtRisk", f"{facts.failure[0]}: {facts.failure[1]}{since}")
    if not facts.latest_name:
        return Protection("AtRisk", "There is no checkpoint yet; the first one is on its way.")
    if facts.interval is not None and facts.recovery_point is not None:
        allowed = facts.interval.period_seconds * PERIODS_MISSED + SLACK_SECONDS
        if facts.now - facts.recovery_point > timedelta(seconds=allowed):
            return Protection(
                "AtRisk",
                f"The recovery point is from {ago(facts.recovery_point, facts.now)}, more than {PERIODS_MISSED} "
                f"periods.{since}",
            )
    return Protection("Protected", f"A restart now would restore {facts.latest_name}.")
