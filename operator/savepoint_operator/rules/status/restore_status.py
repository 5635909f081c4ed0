"""The status of an AgentRestore, as merge patches. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from savepoint.contract.control_protocol import Outcome, Progress, Wait

from savepoint_operator.model.views import Incarnation
from savepoint_operator.rules.status.conditions import Condition, merged, stamp
from savepoint_operator.rules.status.texts import duration_text

Patch = dict[str, Any]

GOOD: Final = frozenset({"Restored", "Fresh", "KeptLocal"})
"""Outcomes after which the agent starts."""
_SENTENCES: Final = {
    "Fresh": "There is no checkpoint: the agent starts from nothing.",
    "KeptLocal": "What the pod's volumes hold is at least as new as the checkpoint: it was kept.",
}

_OTHER_CONFIGURATION: Final = (
    "was made under another configuration (image, command, args, environment or ConfigMaps) than the pod's"
)


def other_configuration(checkpoint: str) -> str:
    """What the user is told once: the agent runs, and may not understand what it has got."""
    return (
        f"Checkpoint {checkpoint} {_OTHER_CONFIGURATION}. The agent runs on with it; later checkpoints are made under "
        "the new one. If it does not understand its state, roll the change back, or the agent: see "
        "docs/reasons/ConfigurationChanged.md."
    )


def target(who: Incarnation, state: str, outcome: Outcome | None, message: str) -> Patch:
    """The one pod of an automatic restore."""
    entry: Patch = {
        "podName": who.pod.name,
        "podUID": who.pod.uid,
        "nodeName": who.node,
        "state": state,
        "message": message[:1024],
    }
    if outcome is not None:
        entry |= {"bytes": outcome.bytes_restored, "milliseconds": outcome.milliseconds}
    return entry


def waiting(who: Incarnation, wait: Wait, started: datetime) -> tuple[Patch, Condition]:
    """The pod waits for its epoch."""
    patch: Patch = {
        "agent": who.agent.name,
        "reason": wait.reason,
        "startTime": stamp(started),
        "targets": [target(who, wait.reason, None, wait.message)],
    }
    return patch, Condition.of("Succeeded", None, wait.reason, wait.message)


def granted(
    who: Incarnation,
    epoch: int,
    resolved: Patch | None,
    progress: Progress | None,
    started: datetime,
    *,
    wait: Wait | None = None,
) -> tuple[Patch, Condition]:
    """The pod holds its epoch and restores. ``resolved``: what, None: nothing; ``wait``: what is in its way."""
    state = progress.stage if progress and progress.stage else "Fetching"
    done = f"{progress.percent}% of {resolved['checkpointName']}" if progress and resolved else ""
    if wait is not None:
        state, done = wait.reason, wait.message
    patch: Patch = {
        "agent": who.agent.name,
        "reason": state,
        "epoch": epoch,
        "startTime": stamp(started),
        "completionTime": None,  # the container may have been started again after it had reported
        "targets": [target(who, state, None, done)],
    }
    if resolved is not None:
        patch["resolved"] = resolved
    return patch, Condition.of("Succeeded", None, state, done)


def ended(
    who: Incarnation, epoch: int, resolved: Patch | None, outcome: Outcome, *, started: datetime, now: datetime
) -> tuple[Patch, Condition]:
    """The init container has reported its outcome."""
    good = outcome.outcome in GOOD
    took = duration_text(outcome.milliseconds)
    if outcome.outcome == "Restored" and resolved:
        sentence = f"Restored from {resolved['checkpointName']} in {took}."
    else:
        sentence = _SENTENCES.get(outcome.outcome, outcome.outcome)
    message = outcome.message or sentence
    if outcome.object_key and outcome.object_key not in message:
        message = f"{message} (object {outcome.object_key})"
    if good and outcome.config_changed and resolved:
        message = f"{message.removesuffix('.')}. The checkpoint {_OTHER_CONFIGURATION} (ConfigurationChanged)."
    patch: Patch = {
        "agent": who.agent.name,
        "reason": outcome.outcome,
        "epoch": epoch,
        "startTime": stamp(started),
        "completionTime": stamp(now),
        "targets": [target(who, outcome.outcome, outcome, message)],
        "summary": {"took": took},
    }
    if resolved is not None:
        patch["resolved"] = resolved
    return patch, Condition.of("Succeeded", good, outcome.outcome, message)


def lost(current: Mapping[str, Any], now: datetime) -> tuple[Patch, Condition]:
    """Its pod is gone, and an earlier leader heard the last of it."""
    message = "The pod ended before it had told how its restore ended."
    targets = [{**each, "state": "PodGone", "message": message} for each in current.get("targets") or ()]
    patch: Patch = {"reason": "PodGone", "completionTime": stamp(now), "targets": targets}
    return patch, Condition.of("Succeeded", False, "PodGone", message)


def status(current: Mapping[str, Any], patch: Patch, condition: Condition, generation: int, now: datetime) -> Patch:
    """The whole merge patch of the status."""
    conditions = merged(current.get("conditions") or (), (condition,), generation, now)
    return {**patch, "observedGeneration": generation, "conditions": conditions}
