"""Choice of the checkpoints to keep. Pure; the operator and ``savepoint run`` delete the others."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

NEWEST: Final = "newest"
KNOWN_GOOD: Final = "before a loss of state"
PROTECTED: Final = "held or in use"


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """Numbers of checkpoints to keep. Counts and generations add up; the limits then take away."""

    keep_last: int = 12
    hourly: int = 0
    """The newest checkpoint of each of this many hours in which there is one; likewise for days and weeks, in UTC."""
    daily: int = 0
    weekly: int = 0
    max_age_seconds: int | None = None
    max_bytes: int | None = None
    """Limit for what the newest one refers to and the others have uploaded."""
    min_known_good: int = 1
    """Checkpoints kept from before each loss of state that is not made up for."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A committed checkpoint."""

    name: str
    sequence: int
    time: datetime
    stored: int = 0
    """Bytes of everything that it refers to."""
    uploaded: int = 0
    """Bytes that it added to the store."""
    shrinkages: tuple[int, ...] = ()
    """Sequences of the last checkpoints before losses that are still open."""


def kept(
    candidates: Iterable[Candidate], rules: RetentionRules, now: datetime, protected: Set[str] = frozenset()
) -> dict[str, list[str]]:
    """Return the names of the checkpoints to keep, each with the rules that keep it.

    No limit applies to the newest one, to ``protected`` ones, and to those from before a loss of state.
    """
    newest_first = sorted(candidates, key=lambda each: (each.sequence, each.time), reverse=True)
    reasons: dict[str, list[str]] = {}

    def keep(items: Iterable[Candidate], reason: str) -> None:
        for each in items:
            reasons.setdefault(each.name, []).append(reason)

    keep(newest_first[: max(rules.keep_last, 0)], "last")
    for period, (count, bucket) in _periods(rules).items():
        keep(_generations(newest_first, count, bucket), period)
    _apply_age(reasons, newest_first, rules, now)
    always = _always(newest_first, rules, protected)
    for name, reason in always.items():
        reasons.setdefault(name, []).append(reason)
    _apply_size(reasons, newest_first, rules, always.keys())
    return reasons


def _periods(rules: RetentionRules) -> dict[str, tuple[int, Callable[[datetime], object]]]:
    return {
        "hourly": (rules.hourly, lambda time: (time.date(), time.hour)),
        "daily": (rules.daily, lambda time: time.date()),
        "weekly": (rules.weekly, lambda time: time.isocalendar()[:2]),
    }


def _generations(
    newest_first: Sequence[Candidate], count: int, bucket: Callable[[datetime], object]
) -> list[Candidate]:
    found: dict[object, Candidate] = {}
    for each in newest_first:
        key = bucket(each.time.astimezone(UTC))
        if key not in found and len(found) < count:
            found[key] = each
    return list(found.values())


def _always(newest_first: Sequence[Candidate], rules: RetentionRules, protected: Set[str]) -> dict[str, str]:
    found = {each.name: NEWEST for each in newest_first[:1]}
    open_losses = newest_first[0].shrinkages if newest_first else ()
    for sequence in open_losses:
        good = [each for each in newest_first if each.sequence <= sequence]
        found |= {each.name: KNOWN_GOOD for each in good[: max(rules.min_known_good, 0)]}
    return found | {each.name: PROTECTED for each in newest_first if each.name in protected}


def _apply_age(
    reasons: dict[str, list[str]], newest_first: Sequence[Candidate], rules: RetentionRules, now: datetime
) -> None:
    if rules.max_age_seconds is None:
        return
    for each in newest_first:
        if (now - each.time).total_seconds() > rules.max_age_seconds:
            reasons.pop(each.name, None)


def _apply_size(
    reasons: dict[str, list[str]], newest_first: Sequence[Candidate], rules: RetentionRules, always: Set[str]
) -> None:
    """Remove the oldest ones until the rest fits."""
    if rules.max_bytes is None:
        return
    sizes = {
        each.name: each.uploaded if number else max(each.stored, each.uploaded)
        for number, each in enumerate(newest_first)
        if each.name in reasons
    }
    total = sum(sizes.values())
    for each in reversed(newest_first):
        if total <= rules.max_bytes:
            return
        if each.name in sizes and each.name not in always:
            del reasons[each.name]
            total -= sizes[each.name]
