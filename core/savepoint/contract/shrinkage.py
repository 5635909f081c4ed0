"""Losses of state after which the checkpoint before must not expire. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

DEFAULT_PERCENT: Final = 50
MIN_BYTES_LOST: Final = 1 << 20
MIN_FILES_LOST: Final = 10
MAX_SHRINKAGES: Final = 32
"""The oldest ones count: they name the checkpoints with the most state."""

WHOLE: Final = ""
"""Stands for the whole state in the place of a component's name."""


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount of state."""

    bytes: int = 0
    files: int | None = 0
    """None: the checkpoint does not say."""


@dataclass(frozen=True)
class Shrinkage:
    """A loss of state that no later checkpoint has made up for."""

    sequence: int  # of the last checkpoint before the loss
    component: str  # the file tree that shrank; WHOLE for the whole state
    bytes_before: int
    bytes_now: int
    files_before: int | None = None
    files_now: int | None = None


def has_shrunk(before: Amount, now: Amount, percent: int = DEFAULT_PERCENT) -> bool:
    """Return whether less than ``percent`` of the bytes or files is left, and the loss is not a trifle."""
    if before.bytes - now.bytes >= MIN_BYTES_LOST and now.bytes * 100 < before.bytes * percent:
        return True
    if before.files is None or now.files is None:
        return False
    return before.files - now.files >= MIN_FILES_LOST and now.files * 100 < before.files * percent


def shrinkages(
    earlier: Iterable[Shrinkage],
    sequence: int,
    before: Mapping[str, Amount],
    now: Mapping[str, Amount],
    percent: int = DEFAULT_PERCENT,
) -> tuple[Shrinkage, ...]:
    """Return the losses that are open after a checkpoint: the parent's that remain, and the new ones.

    Args:
        earlier: The losses that were open at the parent.
        sequence: The parent's sequence.
        before: The parent's amounts: of the whole state, and of each file tree by name.
        now: The new amounts. A file tree that is missing is lost.
        percent: The percentage of the amount before below which it is a loss.
    """
    found = []
    for each in earlier:
        amount = now.get(each.component, Amount())
        if has_shrunk(Amount(each.bytes_before, each.files_before), amount, percent):
            found.append(replace(each, bytes_now=amount.bytes, files_now=amount.files))
    new = {name: amount for name, amount in before.items() if has_shrunk(amount, now.get(name, Amount()), percent)}
    whole = new.get(WHOLE)
    for name, amount in new.items():
        if name != WHOLE and amount == whole:
            continue  # the only file tree: its loss is that of the whole state
        left = now.get(name, Amount())
        found.append(Shrinkage(sequence, name, amount.bytes, left.bytes, amount.files, left.files))
    return tuple(found[:MAX_SHRINKAGES])
