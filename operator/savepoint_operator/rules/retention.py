"""Expiry of checkpoints. Pure. The newest Ready one, the one a restart would restore and those on hold never expire."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from savepoint.repository.history.retention import Candidate, RetentionRules, kept

from savepoint_operator.model.objects import CheckpointObject
from savepoint_operator.rules.quantity import parse_quantity
from savepoint_operator.rules.status.conditions import parsed_time

KEEP_FAILED: Final = 5


def expired(
    checkpoints: Iterable[CheckpointObject],
    rules: RetentionRules,
    now: datetime,
    protected: frozenset[str],
    failed: frozenset[str],
) -> list[CheckpointObject]:
    """Return the checkpoints to delete, oldest first.

    Args:
        checkpoints: All checkpoints of one agent.
        rules: The policy's retention.
        now: The time from which the age counts.
        protected: Names of those that a restart or a rollback restores.
        failed: Names of those that ended without a commit.
    """
    every = list(checkpoints)
    ready = sorted((each for each in every if each.ready), key=lambda each: (each.sequence, each.meta.created))
    held = {each.meta.name for each in ready if each.hold}
    stay = kept(map(_candidate, ready), rules, now, protected | held)
    uncommitted = sorted((each for each in every if each.meta.name in failed), key=lambda each: each.meta.created)
    surplus = [each for each in ready if each.meta.name not in stay]
    return surplus + [each for each in uncommitted[:-KEEP_FAILED] if not each.hold]


def kept_sequences(checkpoints: Iterable[CheckpointObject]) -> frozenset[int]:
    """Return the sequences whose objects collection must keep."""
    return frozenset(each.sequence for each in checkpoints if each.sequence > 0)


def _candidate(item: CheckpointObject) -> Candidate:
    size = item.status.get("size") or {}
    completed = parsed_time((item.status.get("timing") or {}).get("completion"))
    return Candidate(
        name=item.meta.name,
        sequence=item.sequence,
        time=completed or item.meta.created,
        stored=_bytes(size, "stored"),
        uploaded=_bytes(size, "uploaded"),
        shrinkages=tuple(each["sequence"] for each in item.status.get("shrinkages") or ()),
    )


def _bytes(size: Mapping[str, Any], name: str) -> int:
    return int(parse_quantity(size.get(name) or 0) or 0)
