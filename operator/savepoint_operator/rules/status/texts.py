"""Words for people: sizes, durations and what to do next. Pure. Columns do not format, so the operator does."""

from datetime import datetime, timedelta
from typing import Final

_UNITS: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi")

NEXT_STEP: Final = {
    "AgentNotRunning": "Start the agent's pod, or wait until its sidecar is connected, and create another "
    "AgentCheckpoint.",
    "DeadlineExceeded": "The next attempt starts anew; if this repeats, look at the sidecar's log and at the store's "
    "speed.",
    "EvictionBlocked": "It is tried again. If the budget can never allow it, delete the pod by hand.",
    "Fenced": "Nothing is lost that was Ready. Delete the pod that was superseded if it still runs.",
    "IntegrityError": "Look at the store: an object that a checkpoint needs is damaged or gone.",
    "QuiesceTimeout": "Add agent.safe_point() or raise spec.quiesce.timeoutSeconds in {policy}.",
    "RunAsUserRequired": "Set securityContext.runAsUser of the agent's container to the uid that owns the files.",
    "SourcePodReplaced": "The agent's next pod takes the next checkpoint.",
    "StageFull": "Raise spec.stage.sizeLimit in {policy}.",
    "StateTooLarge": "Leave out what need not be kept by spec.state.exclude in {policy}.",
    "StateUnstable": "Let the agent write its state only between safe points, or leave the files out by "
    "spec.state.exclude in {policy}.",
    "StoreDenied": "Check the rights of the store's credentials.",
    "StoreMisconfigured": "Look at the conditions of the AgentCheckpointStore.",
    "StoreUnavailable": "Earlier checkpoints are safe. Look at the conditions of the AgentCheckpointStore.",
    "Unavailable": "By time it is tried again; what was asked for by hand is not: create another AgentCheckpoint.",
}


def next_step(reason: str, policy_name: str | None) -> str:
    """What to do about the reason; empty when there is nothing to add."""
    where = f'policy "{policy_name}"' if policy_name else "an AgentCheckpointPolicy"
    return NEXT_STEP.get(reason, "").format(policy=where)


def with_next_step(reason: str, message: str, policy_name: str | None) -> str:
    """The message, followed by what to do, unless it says so itself."""
    step = next_step(reason, policy_name)
    text = message.strip() or reason
    if not step or step in text:
        return text
    return f"{text}{'' if text.endswith(('.', '!', '?')) else '.'} {step}"


def size_text(count: int) -> str:
    """As kubectl shows quantities: 410Mi."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    if unit == 0 or value >= 10:
        return f"{value:.0f}{_UNITS[unit]}"
    return f"{value:.1f}".rstrip("0").rstrip(".") + _UNITS[unit]


def duration_text(milliseconds: float) -> str:
    """0s, 38ms, 3.1s, 4m, 6h, 3d."""
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
    """41m ago."""
    return f"{duration_text(max((now - then) / timedelta(milliseconds=1), 0.0))} ago"
