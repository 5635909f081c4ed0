"""Expiry of checkpoints. Pure. The newest Ready one, the one a restart would restore and those on hold never expire."""

from collections.abc import Iterable
from typing import Final

from savepoint_operator.model.objects import CheckpointObject

KEEP_FAILED: Final = 5


def expired(
    checkpoints: Iterable[CheckpointObject], keep_last: int, latest_name: str, failed: frozenset[str]
) -> list[CheckpointObject]:
    """Return the checkpoints to delete, oldest first. ``failed``: names of those that ended without a commit."""
    every = list(checkpoints)
    ready = sorted((each for each in every if each.ready), key=lambda each: (each.sequence, each.meta.created))
    kept = {each.meta.name for each in ready[-max(keep_last, 1) :]} | {latest_name}
    uncommitted = sorted((each for each in every if each.meta.name in failed), key=lambda each: each.meta.created)
    surplus = [each for each in ready if not each.hold and each.meta.name not in kept]
    return surplus + [each for each in uncommitted[:-KEEP_FAILED] if not each.hold]


def kept_sequences(checkpoints: Iterable[CheckpointObject]) -> frozenset[int]:
    """Return the sequences whose objects collection must keep."""
    return frozenset(each.sequence for each in checkpoints if each.sequence > 0)
