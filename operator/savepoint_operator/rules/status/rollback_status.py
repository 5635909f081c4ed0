"""What the status of a rollback's or reset's AgentRestore says: what it resolved to, and what keeps it. Pure."""

from datetime import datetime
from typing import Any, Final

from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.model.objects import CheckpointObject
from savepoint_operator.rules.status.conditions import Condition
from savepoint_operator.rules.status.texts import duration_text, with_next_step

GIVE_UP_SECONDS: Final = 600.0
"""How long it is tried in vain, one failure after another; a disruption budget may forbid the eviction for longer."""
_BOUND: Final = duration_text(GIVE_UP_SECONDS * 1000)


def time_of(checkpoint: CheckpointObject | None) -> datetime | None:
    """When it was made; None where it does not say so."""
    timing = (checkpoint.status.get("timing") or {}) if checkpoint is not None else {}
    text = timing.get("completion")
    return datetime.fromisoformat(text) if text else None


def resolved(checkpoint: CheckpointObject | None) -> dict[str, Any] | None:
    """``status.resolved`` of a rollback; None of a reset."""
    if checkpoint is None:
        return None
    found: dict[str, Any] = {"checkpointName": checkpoint.meta.name, "sequence": checkpoint.sequence}
    digest = (checkpoint.status.get("integrity") or {}).get("manifestDigest")
    time = (checkpoint.status.get("timing") or {}).get("completion")
    return {**found, **({"manifestDigest": digest} if digest else {}), **({"time": time} if time else {})}


def impossible(error: SavepointError) -> Condition:
    """It can never be done."""
    return Condition.of("Succeeded", False, error.reason, _words(error))


def tried_again(error: SavepointError) -> Condition:
    """It may still be done."""
    return Condition.of("Succeeded", None, error.reason, f"{_words(error)} It is tried again, for {_BOUND} at most.")


def given_up(error: SavepointError, *, committed: bool) -> Condition:
    """It was tried for long. ``committed``: its record is written, and only the eviction is missing."""
    step = (
        "Create another AgentRestore once this is mended, unless the agent has gone back after all: the store may have "
        "taken a try whose answer was lost."
    )
    if committed:
        step = "That the agent goes back is recorded: its next pod restores it, so delete the one that runs."
    return Condition.of("Succeeded", False, error.reason, f"{_words(error)} It was tried for {_BOUND}. {step}")


def blocked(pod: str, error: SavepointError) -> Condition:
    """A disruption budget forbids the eviction."""
    text = f"Pod {pod} cannot be evicted now, a disruption budget forbids it: {error}"
    return Condition.of("Succeeded", None, "EvictionBlocked", with_next_step("EvictionBlocked", text, None))


def _words(error: SavepointError) -> str:
    """What happened, and what to do. The next step of Unavailable is one of checkpoints."""
    text = str(error).strip() or error.reason
    text = text if isinstance(error, Unavailable) else with_next_step(error.reason, text, None)
    return text if text.endswith((".", "!", "?")) else f"{text}."
