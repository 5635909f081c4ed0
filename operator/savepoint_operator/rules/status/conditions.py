"""Conditions and merge patches as the Kubernetes API conventions ask for. Pure; every status is built with these."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

Raw = Mapping[str, Any]
MAX_MESSAGE: Final = 32768
"""The API server's limit for the message of a condition, in characters."""


@dataclass(frozen=True)
class Condition:
    """A condition to report; ``merged`` adds the time of its transition."""

    type: str
    status: str
    """True, False or Unknown."""
    reason: str
    message: str = ""

    @classmethod
    def of(cls, kind: str, holds: bool | None, reason: str, message: str = "") -> "Condition":
        """Return a condition of this type; ``holds`` None: Unknown."""
        return cls(kind, "Unknown" if holds is None else str(holds), reason, message)


def stamp(time: datetime) -> str:
    """Return a time as status fields hold it, in whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise_stamp(time: datetime) -> str:
    """Return a time with its microseconds, in the one format that every validator accepts."""
    time = time.astimezone(UTC)
    return f"{time.year:04}-{time:%m-%dT%H:%M:%S.%f}Z"


def parsed_time(text: str | None) -> datetime | None:
    """Return the time in an untrusted text, or None if there is none; nothing may depend on its being right."""
    try:
        time = datetime.fromisoformat(text or "")
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def merged(current: Iterable[Raw], wanted: Iterable[Condition], generation: int, now: datetime) -> list[dict[str, Any]]:
    """Return the conditions to write. ``lastTransitionTime`` moves only with the status; other types stay unchanged."""
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
            "message": condition.message[:MAX_MESSAGE],
        }
    return list(by_type.values())


def changed(current: Raw, patch: Raw) -> dict[str, Any]:
    """Return the part of a merge patch that changes something; null removes a field, lists are replaced whole."""
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
