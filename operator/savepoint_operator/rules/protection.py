"""Protection state of an agent: Protected, AtRisk, Unprotected, Restoring or Completed, and why. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from savepoint.contract.vocabulary import ProtectionState, Reason

from savepoint_operator.model.objects import Interval, Pod
from savepoint_operator.rules.status.texts import ago

PERIODS_MISSED: Final = 3
"""Maximum age of the recovery point, in periods."""
SLACK_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 60.0
"""Seconds that a running pod may be without a connection from its sidecar."""
DAMAGED: Final = frozenset({Reason.ROLLBACK_DETECTED, Reason.INTEGRITY_ERROR})
"""Failures after which the next start may be unable to restore, whether a pod runs or not."""


@dataclass(frozen=True)
class Facts:
    """The facts that decide an agent's protection state."""

    pods: tuple[Pod, ...]
    connected: bool
    restoring: str
    """A sentence on what the newest pod restores or waits for; empty if it does neither."""
    start_failure: str
    """A sentence on why the newest pod's last start failed; empty if it did not."""
    completed: bool
    latest_name: str
    recovery_point: datetime | None
    failure: tuple[str, str] | None
    """Reason and message of the last failure, if nothing has succeeded since."""
    lost_node: str
    interval: Interval | None
    """None: no scheduled checkpoints, or suspended."""
    disconnected_seconds: float
    """Time since the sidecar was last connected, or since the pod or the leader started."""
    now: datetime
    crash_loop: str = ""
    """A sentence on the container that keeps crashing since its state was restored; empty if none does."""


@dataclass(frozen=True)
class Protection:
    """The state of an agent; ``reason`` is a ProtectionState."""

    reason: str
    message: str

    @property
    def holds(self) -> bool:
        """The status of condition Protected."""
        return self.reason in (ProtectionState.PROTECTED, ProtectionState.COMPLETED)


def judge(facts: Facts) -> Protection:  # noqa: PLR0911, PLR0912 - one per state
    """Return the first state that applies, the most serious first."""
    uninjected = next((pod for pod in facts.pods if pod.live and not pod.injected), None)
    if uninjected is not None:
        return Protection(
            ProtectionState.UNPROTECTED,
            f"Pod {uninjected.meta.name} carries the label but was not injected: it was labelled after it was created, "
            "or the webhook did not see it. Delete the pod so that its owner recreates it.",
        )
    live = [pod for pod in facts.pods if pod.live]
    latest = f" Last checkpoint: {facts.latest_name}." if facts.latest_name else ""
    weak = ProtectionState.AT_RISK if facts.latest_name else ProtectionState.UNPROTECTED
    blocked = next((pod for pod in reversed(live) if pod.blocked), None)
    if blocked is not None:
        return Protection(weak, f"Pod {blocked.meta.name}: {blocked.blocked}{latest}")
    if facts.restoring:
        return Protection(ProtectionState.RESTORING, facts.restoring)
    if facts.start_failure and live and not facts.connected:
        return Protection(weak, f"{facts.start_failure}{latest}")
    if facts.failure is not None and facts.failure[0] in DAMAGED:
        return Protection(weak, f"{facts.failure[0]}: {facts.failure[1]}{latest}")
    if facts.completed:
        return Protection(ProtectionState.COMPLETED, "The run has ended; the next one starts fresh.")
    if not live:
        if facts.latest_name:
            message = f"No pod is running; the next one restores {facts.latest_name}."
            return Protection(ProtectionState.PROTECTED, message)
        return Protection(ProtectionState.UNPROTECTED, "No pod is running, and there is no checkpoint.")
    if facts.crash_loop:
        return Protection(ProtectionState.AT_RISK, facts.crash_loop)
    if facts.lost_node:
        return Protection(ProtectionState.AT_RISK, f"Node {facts.lost_node} is lost.{latest}")
    if not facts.connected and facts.disconnected_seconds > CONNECT_SECONDS:
        return Protection(
            weak,
            f"The sidecar of pod {live[-1].meta.name} is not connected. See the log of its container "
            f"savepoint-sidecar.{latest}",
        )
    if facts.failure is not None:
        return Protection(ProtectionState.AT_RISK, f"{facts.failure[0]}: {facts.failure[1]}{latest}")
    if not facts.latest_name:
        return Protection(ProtectionState.AT_RISK, "There is no checkpoint yet; the first one is in progress.")
    if facts.interval is not None and facts.recovery_point is not None:
        allowed = facts.interval.period_seconds * PERIODS_MISSED + SLACK_SECONDS
        if facts.now - facts.recovery_point > timedelta(seconds=allowed):
            return Protection(
                ProtectionState.AT_RISK,
                f"The recovery point is from {ago(facts.recovery_point, facts.now)}, more than {PERIODS_MISSED} "
                f"periods.{latest}",
            )
    return Protection(ProtectionState.PROTECTED, f"A restart now would restore {facts.latest_name}.")
