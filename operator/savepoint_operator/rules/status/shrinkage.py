"""Texts about a loss of state, for a ProtectedAgent and an Event. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from savepoint_operator.model.objects import CheckpointObject
from savepoint_operator.rules.status.texts import size_text


class Loss(NamedTuple):
    """The newest loss of state that is not made up for."""

    checkpoint: CheckpointObject
    """The newest checkpoint, which still lacks the state."""
    status: Mapping[str, Any]
    """Content of ``ProtectedAgent.status.shrank``."""


def newest_loss(checkpoints: Iterable[CheckpointObject]) -> Loss | None:
    """Return the newest loss of state that the newest of an agent's checkpoints names; None if it names none."""
    ready = sorted((each for each in checkpoints if each.ready), key=lambda each: (each.sequence, each.meta.created))
    shown = ready[-1].status.get("shrinkages") if ready else None
    if not shown:
        return None
    loss = max(shown, key=lambda each: each["sequence"])
    sequence = loss["sequence"]
    good = next((each for each in reversed(ready) if each.sequence <= sequence), None)
    name = good.meta.name if good is not None else None
    status = {"sequence": sequence, "checkpointName": name, "message": _message(ready[-1].agent.name, loss, name)}
    return Loss(ready[-1], status)


def _message(agent: str, loss: Mapping[str, Any], good: str | None) -> str:
    what = f"File tree {loss['component']}" if loss.get("component") else "The state"
    before, now = _amount(loss, "Before"), _amount(loss, "Now")
    text = f"{what} of agent {agent} shrank from {before} to {now}."
    if good is None:
        return f"{text} No checkpoint from before the loss is left."
    return (
        f"{text} Checkpoint {good} from before is kept. If the loss is a mistake, roll back to it; if not, delete it: "
        f"kubectl delete ackpt {good}."
    )


def _amount(loss: Mapping[str, Any], when: str) -> str:
    size, files = size_text(loss[f"bytes{when}"]), loss.get(f"files{when}")
    return size if files is None else f"{size} in {files} files"
