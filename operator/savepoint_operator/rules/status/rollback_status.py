"""The status texts of an AgentRestore that rolls back or resets: its target, and what delays or ends it. Pure."""

from datetime import datetime
from typing import Any, Final

from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.model.objects import CheckpointObject
from savepoint_operator.rules.status.conditions import Condition
from savepoint_operator.rules.status.texts import duration_text, with_next_step

GIVE_UP_SECONDS: Final = 600.0
"""Seconds for which consecutive failures are retried; only a disruption budget may delay the eviction for longer."""
_LIMIT: Final = duration_text(GIVE_UP_SECONDS * 1000)


def completion_time(checkpoint: CheckpointObject | None) -> datetime | None:
    """Return when the checkpoint was completed, or None if its status does not say."""
    timing = (checkpoint.status.get("timing") or {}) if checkpoint is not None else {}
    text = timing.get("completion")
    return datetime.fromisoformat(text) if text else None


def resolved(checkpoint: CheckpointObject | None) -> dict[str, Any] | None:
    """Return ``status.resolved`` of a rollback to the checkpoint; None for a reset."""
    if checkpoint is None:
        return None
    found: dict[str, Any] = {"checkpointName": checkpoint.meta.name, "sequence": checkpoint.sequence}
    digest = (checkpoint.status.get("integrity") or {}).get("manifestDigest")
    time = (checkpoint.status.get("timing") or {}).get("completion")
    return {**found, **({"manifestDigest": digest} if digest else {}), **({"time": time} if time else {})}


def failed(error: SavepointError) -> Condition:
    """Return the condition of a restore that can never succeed."""
    return Condition.of("Succeeded", False, error.reason, _message(error))


def retrying(error: SavepointError) -> Condition:
    """Return the condition of a restore that failed and is retried."""
    text = f"{_message(error)} The operator retries for at most {_LIMIT}."
    return Condition.of("Succeeded", None, error.reason, text)


def given_up(error: SavepointError, *, committed: bool) -> Condition:
    """Return the condition of a restore that failed for too long.

    ``committed``: its record is written, and only the eviction is missing.
    """
    step = (
        "Fix the cause and create another AgentRestore, unless the agent was rolled back after all: the store may have "
        "accepted an attempt whose answer was lost."
    )
    if committed:
        step = "It is recorded and takes effect in the agent's next pod. Delete the running pod."
    text = f"{_message(error)} The operator gave up after {_LIMIT}. {step}"
    return Condition.of("Succeeded", False, error.reason, text)


def eviction_blocked(pod: str, error: SavepointError) -> Condition:
    """Return the condition of a restore whose pod a disruption budget keeps from being evicted."""
    text = f"Pod {pod} cannot be evicted now because a disruption budget forbids it: {error}"
    return Condition.of("Succeeded", None, Reason.EVICTION_BLOCKED, with_next_step(Reason.EVICTION_BLOCKED, text, None))


def _message(error: SavepointError) -> str:
    """Return the error and its remedy; the remedy of Unavailable is left out, since it is about checkpoints."""
    text = str(error).strip() or error.reason
    text = text if isinstance(error, Unavailable) else with_next_step(error.reason, text, None)
    return text if text.endswith((".", "!", "?")) else f"{text}."
