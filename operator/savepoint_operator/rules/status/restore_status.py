"""The status of an AgentRestore, as merge patches. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from savepoint.contract.control_protocol import Outcome, Progress, Wait
from savepoint.contract.vocabulary import Reason, RestoreOutcome, RestorePhase

from savepoint_operator.model.views import Incarnation
from savepoint_operator.rules.status.conditions import Condition, stamp
from savepoint_operator.rules.status.texts import duration_text

Patch = dict[str, Any]

SUCCESSFUL_OUTCOMES: Final = frozenset(RestoreOutcome)
"""Outcomes after which the agent starts."""
_OUTCOME_MESSAGES: Final[Mapping[str, str]] = {
    RestoreOutcome.FRESH: "There is no checkpoint; the agent starts from nothing.",
    RestoreOutcome.KEPT_LOCAL: "The pod's volumes hold state at least as new as the checkpoint; it was kept.",
}
MAX_TARGET_MESSAGE: Final = 1024
_FOLDERS_IN_EVENT: Final = 3
_NAMES_IN_EVENT: Final = 5

_OTHER_CONFIGURATION: Final = (
    "was taken under another configuration (image, command, args, environment or ConfigMaps) than the pod's"
)


def configuration_changed_message(checkpoint: str) -> str:
    """Return the text of Event ConfigurationChanged: the agent runs but may not understand the restored state."""
    return (
        f"Checkpoint {checkpoint} {_OTHER_CONFIGURATION}. The agent continues from it, and later checkpoints are taken "
        "under the new configuration. If the agent does not understand its state, roll back the change or the agent; "
        "see docs/reasons/ConfigurationChanged.md."
    )


def target(incarnation: Incarnation, state: str, outcome: Outcome | None, message: str) -> Patch:
    """Return the entry of ``status.targets`` for the one pod of an automatic restore."""
    entry: Patch = {
        "podName": incarnation.pod.name,
        "podUID": incarnation.pod.uid,
        "nodeName": incarnation.node,
        "state": state,
        "message": message[:MAX_TARGET_MESSAGE],
    }
    if outcome is not None:
        entry |= {"bytes": outcome.bytes_restored, "milliseconds": outcome.milliseconds}
    return entry


def waiting(incarnation: Incarnation, wait: Wait, started: datetime) -> tuple[Patch, Condition]:
    """Return the status while the pod waits for its epoch."""
    patch: Patch = {
        "agent": incarnation.agent.name,
        "reason": wait.reason,
        "startTime": stamp(started),
        "targets": [target(incarnation, wait.reason, None, wait.message)],
    }
    return patch, Condition.of("Succeeded", None, wait.reason, wait.message)


def granted(
    incarnation: Incarnation,
    epoch: int,
    resolved: Patch | None,
    progress: Progress | None,
    started: datetime,
    *,
    wait: Wait | None = None,
) -> tuple[Patch, Condition]:
    """Return the status while the pod holds its epoch and restores.

    ``resolved``: the checkpoint, None if there is none; ``wait``: what delays the restore.
    """
    state = progress.stage if progress and progress.stage else RestorePhase.FETCHING
    message = f"{progress.percent}% of {resolved['checkpointName']}" if progress and resolved else ""
    if wait is not None:
        state, message = wait.reason, wait.message
    patch: Patch = {
        "agent": incarnation.agent.name,
        "reason": state,
        "epoch": epoch,
        "startTime": stamp(started),
        "completionTime": None,  # the container may have restarted after it had reported
        "targets": [target(incarnation, state, None, message)],
    }
    if resolved is not None:
        patch["resolved"] = resolved
    return patch, Condition.of("Succeeded", None, state, message)


def ended(
    incarnation: Incarnation, epoch: int, resolved: Patch | None, outcome: Outcome, *, started: datetime, now: datetime
) -> tuple[Patch, Condition]:
    """Return the status after the init container has reported its outcome."""
    succeeded = outcome.outcome in SUCCESSFUL_OUTCOMES
    took = duration_text(outcome.milliseconds)
    if outcome.outcome == RestoreOutcome.RESTORED and resolved:
        sentence = f"Restored from {resolved['checkpointName']} in {took}."
    else:
        sentence = _OUTCOME_MESSAGES.get(outcome.outcome, outcome.outcome)
    message = outcome.message or sentence
    if outcome.object_key and outcome.object_key not in message:
        message = f"{message} (object {outcome.object_key})"
    if succeeded and outcome.config_changed and resolved:
        message = f"{message.removesuffix('.')}. The checkpoint {_OTHER_CONFIGURATION} (ConfigurationChanged)."
    patch: Patch = {
        "agent": incarnation.agent.name,
        "reason": outcome.outcome,
        "epoch": epoch,
        "startTime": stamp(started),
        "completionTime": stamp(now),
        "targets": [target(incarnation, outcome.outcome, outcome, message)],
        "summary": {"took": took},
    }
    if resolved is not None:
        patch["resolved"] = resolved
    if outcome.replaced:
        patch["replaced"] = [
            {"path": each.path, "entries": each.entries, "names": list(each.names)} for each in outcome.replaced
        ]
    return patch, Condition.of("Succeeded", succeeded, outcome.outcome, message)


def replaced_message(outcome: Outcome) -> str:
    """Return what the restore replaced, and where it is now."""
    folders = "; ".join(
        f"{each.path}: {each.entries} files or folders ({', '.join(each.names[:_NAMES_IN_EVENT])}"
        f"{', …' if each.entries > _NAMES_IN_EVENT else ''})"
        for each in outcome.replaced[:_FOLDERS_IN_EVENT]
    )
    return (
        f"The restore moved aside what the checkpoint does not have, or has with another content: {folders}. The "
        "volume keeps what its three latest restores moved."
    )


def pod_gone(current: Mapping[str, Any], now: datetime) -> tuple[Patch, Condition]:
    """Return the status of a restore whose pod no longer exists and whose outcome this leader never received."""
    message = "The pod ended before it reported the outcome of its restore."
    targets = [{**each, "state": Reason.POD_GONE, "message": message} for each in current.get("targets") or ()]
    patch: Patch = {"reason": Reason.POD_GONE, "completionTime": stamp(now), "targets": targets}
    return patch, Condition.of("Succeeded", False, Reason.POD_GONE, message)
