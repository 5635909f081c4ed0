"""Conditions as the API conventions want them. Pure; every status goes through here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """What is to be said; the time of transition is found by ``merged``."""

    type: str
    status: str
    """True, False or Unknown."""
    reason: str
    message: str = ""

    @classmethod
    def of(cls, kind: str, holds: bool | None, reason: str, message: str = "") -> "Condition":
        """None: unknown."""
        return cls(kind, "Unknown" if holds is None else str(holds), reason, message)


def stamp(time: datetime) -> str:
    """A time as status fields carry it, in whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise_stamp(time: datetime) -> str:
    """A time with its microseconds, in the one form that every validator takes."""
    time = time.astimezone(UTC)
    return f"{time.year:04}-{time:%m-%dT%H:%M:%S.%f}Z"


def parsed_time(text: str | None) -> datetime | None:
    """A time that somebody else wrote, None when it is none: nothing rests on its being right."""
    try:
        time = datetime.fromisoformat(text or "")
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def merged(current: Iterable[Raw], wanted: Iterable[Condition], generation: int, now: datetime) -> list[dict[str, Any]]:
    """The list to write: ``lastTransitionTime`` moves only when the status does; other types are left as they are."""
    by_type: dict[str, dict[str, Any]] = {each["type"]: dict(each) for each in current}
    for condition in wanted:
        before = by_type.get(condition.type)
        since = before["lastTransitionTime"] if before and before["status"] == condition.status else stamp(now)
        by_type[condition.type] = {
            "type": condition.type,
            "status": condition.status,
            "observedGeneration": generation,
            "lastTransitionTime": since,
            "reason": condition.reason,
            "message": condition.message[:32768],
        }
    return list(by_type.values())


def changed(current: Raw, patch: Raw) -> dict[str, Any]:
    """The part of a merge patch that would change something; null removes, and lists are replaced whole."""
    parts: dict[str, Any] = {}
    for name, value in patch.items():
        before = current.get(name)
        if isinstance(value, Mapping):
            inner = changed(before if isinstance(before, Mapping) else {}, value)
            if inner or before is None:
                parts[name] = inner
        elif value != before:
            parts[name] = value
    return parts
