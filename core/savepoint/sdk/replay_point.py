"""Catching up: between the start of a turn that runs again and the point where the checkpoint was taken.

A program starts from its first line, and turns that were open run again from theirs; what they do to documents was in
the checkpoint already. So when the program comes to the point where the cut was taken, the documents are set back to
what they were when the first such turn was entered. It knows documents and points; scopes and locks are the caller's.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from savepoint.sdk.errors import RestoreFailed

log: Final = logging.getLogger("savepoint")


@dataclass(frozen=True)
class ReplayPoint:
    """Where a cut was taken: between two turns of a loop, or at the n-th explicit safe point of a scope's pass."""

    scope: str
    loop: str = ""
    number: int = 0

    def to_plain(self) -> dict[str, Any]:
        """For the execution component."""
        return {"scope": self.scope, "loop": self.loop, "number": self.number}

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any] | None) -> "ReplayPoint | None":
        """From the execution component. Raises RestoreFailed."""
        if raw is None:
            return None
        try:
            return cls(str(raw["scope"]), str(raw["loop"]), int(raw["number"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RestoreFailed("the saved execution state cannot be read") from error


def become(target: Any, source: Any) -> None:
    """Make a container equal to another of its class; containers inside keep their identity where they keep their
    place, for the program may hold on to them."""
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
        become(old, new)
        return old
    return new
