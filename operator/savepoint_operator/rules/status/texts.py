"""Texts for users: remedies, sizes and durations. Pure. Printer columns cannot format, so the operator does."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from savepoint.contract.vocabulary import Reason

_UNITS: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi")

NEXT_STEP: Final[Mapping[str, str]] = {
    Reason.AGENT_NOT_RUNNING: "Start the agent's pod, or wait until its sidecar is connected, and create another "
    "AgentCheckpoint.",
    Reason.DEADLINE_EXCEEDED: "If this repeats, check the sidecar's log and the speed of the store.",
    Reason.EVICTION_BLOCKED: "The operator retries. If the budget can never allow it, delete the pod by hand.",
    Reason.FENCED: "Every Ready checkpoint is safe. Delete the superseded pod if it is still running.",
    Reason.INTEGRITY_ERROR: "Run `savepoint verify` on the store: an object that a checkpoint needs is damaged or "
    "missing.",
    Reason.QUIESCE_TIMEOUT: "Add agent.safe_point() or raise spec.quiesce.timeoutSeconds in {policy}.",
    Reason.RUN_AS_USER_REQUIRED: "Set securityContext.runAsUser of the agent's container to the uid that owns the "
    "files.",
    Reason.SOURCE_POD_REPLACED: "The agent's next pod takes the next checkpoint.",
    Reason.STAGE_FULL: "Raise spec.stage.sizeLimit in {policy}.",
    Reason.STATE_TOO_LARGE: "Exclude files that need not be kept with spec.state.exclude in {policy}.",
    Reason.STATE_UNSTABLE: "Let the agent write its state only between safe points, or exclude the files with "
    "spec.state.exclude in {policy}.",
    Reason.STORE_DENIED: "Check the permissions of the store's credentials.",
    Reason.STORE_MISCONFIGURED: "Check the conditions of the AgentCheckpointStore.",
    Reason.STORE_UNAVAILABLE: "Earlier checkpoints are safe. Check the conditions of the AgentCheckpointStore.",
    Reason.UNAVAILABLE: "Scheduled checkpoints retry automatically; create a new AgentCheckpoint to retry a manual "
    "one.",
}
"""The remedy for each reason that has one; ``{policy}`` is the policy that applies to the agent."""


def next_step(reason: str, policy_name: str | None) -> str:
    """Return the remedy for the reason; empty if there is none to add."""
    return NEXT_STEP.get(reason, "").format(policy=_policy(policy_name))


def with_next_step(reason: str, message: str, policy_name: str | None) -> str:
    """Return the message followed by the remedy.

    A message that already includes the remedy is returned as it is. A message that names a policy's field has a remedy
    of its own; "the policy" in it is replaced by the policy's name.
    """
    step = next_step(reason, policy_name)
    text = message.strip() or reason
    if not step or step in text:
        return text
    if "spec." in text and "{policy}" in NEXT_STEP[reason]:
        return text.replace("in the policy", f"in {_policy(policy_name)}")
    return f"{text}{'' if text.endswith(('.', '!', '?')) else '.'} {step}"


def _policy(name: str | None) -> str:
    return f'policy "{name}"' if name else "an AgentCheckpointPolicy"


def uid_text(uid: int) -> str:
    """Return what follows from the agent's uid, which only its files or its process have shown."""
    return (
        f"The agent runs as uid {uid}, which nothing in its pod declares. The injected containers of its next pod get "
        f"this uid. To be independent of this, set runAsUser: {uid} on the agent's container."
    )


def size_text(count: int) -> str:
    """Return a number of bytes the way kubectl shows quantities, such as 410Mi."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    if unit == 0 or value >= 10:
        return f"{value:.0f}{_UNITS[unit]}"
    return f"{value:.1f}".rstrip("0").rstrip(".") + _UNITS[unit]


def duration_text(milliseconds: float) -> str:
    """Return a duration in one unit, such as 0s, 38ms, 3.1s, 4m, 6h or 3d."""
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    seconds = milliseconds / 1000
    if seconds < 10:
        return f"{seconds:.1f}s"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds / 86400:.0f}d"


def ago(then: datetime, now: datetime) -> str:
    """Return how long ago a time was, such as "41m ago"; a time in the future is "0s ago"."""
    return f"{duration_text(max((now - then) / timedelta(milliseconds=1), 0.0))} ago"
