"""Replay points: the places in a program where checkpoints are taken, and how documents are set back at one.

After a restore a program starts from its first line, and iterations that were open start again from theirs. What they
do to documents is in the checkpoint already. So when the program reaches the point where the checkpoint was taken,
documents are set back to what they were when the first such iteration started. Scopes and locks belong to the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from savepoint.sdk.errors import RestoreFailed


@dataclass(frozen=True)
class ReplayPoint:
    """The place of a checkpoint: between two iterations of ``loop``, or at explicit safe point ``number`` of a pass.

    ``scope`` is the path of the scope; explicit safe points are counted from 0 in each pass of it.
    """

    scope: str
    loop: str = ""
    number: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Return the point as plain JSON values, for the execution component."""
        return {"scope": self.scope, "loop": self.loop, "number": self.number}

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any] | None) -> "ReplayPoint | None":
        """Return the point that ``to_plain`` described. Raises RestoreFailed."""
        if raw is None:
            return None
        try:
            return cls(str(raw["scope"]), str(raw["loop"]), int(raw["number"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RestoreFailed("the saved execution state cannot be read") from error


def assign_in_place(target: Any, source: Any) -> None:
    """Make a container equal to another of its class.

    Inner containers keep their identity where they keep their place, because the program may hold references to them.
    """
    if isinstance(target, dict):
        merged = {key: _merged(target.get(key), value) for key, value in source.items()}
        target.clear()
        target.update(merged)
    elif isinstance(target, list):
        kept = target[: len(source)]
        target[:] = [_merged(old, new) for old, new in zip(kept, source, strict=False)] + source[len(kept) :]
    else:
        target[:] = source


def _merged(old: Any, new: Any) -> Any:
    if old.__class__ is new.__class__ and new.__class__ in (dict, list):
        assign_in_place(old, new)
        return old
    return new
