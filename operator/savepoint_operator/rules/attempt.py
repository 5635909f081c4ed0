"""What becomes of the one attempt an agent has in flight, and what a sidecar may say of one. Pure; it sends nothing.

Time comes in as an argument.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum, auto

from savepoint.contract.control import AttemptState, Offer, RequestCheckpoint

ANSWER_GRACE_SECONDS = 5.0
"""How long after the deadline a sidecar may still report its own failure before the operator does."""
UNKNOWN_DEADLINE_SECONDS = 600
"""Deadline of an attempt that a sidecar restates and that this leader did not order."""
URGENT = frozenset({"Shutdown", "Finish", "Drain", "Preemption"})
"""Triggers whose pod is about to go: an operator that stops finishes these first."""
REQUESTED = frozenset({"Agent", "Shutdown", "Finish"})
"""Triggers that a pod may ask for."""

_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_MANIFEST = re.compile(r"[0-9a-f]{64}")
_TRIGGER = re.compile(r"[A-Z][A-Za-z]{1,31}")


@dataclass(frozen=True)
class Attempt:
    """An attempt in flight. ``deadline`` is in monotonic seconds."""

    id: str
    trigger: str
    deadline: float
    after: str = "Resume"
    stage: str = "Pending"

    def at(self, stage: str) -> "Attempt":
        """The same attempt, further on."""
        return replace(self, stage=stage)

    def expires_in(self, now: float) -> float:
        """Seconds until the operator itself calls the attempt failed; never negative."""
        return max(0.0, self.deadline + ANSWER_GRACE_SECONDS - now)

    def seconds_left(self, now: float) -> int:
        """Whole seconds left to the sidecar, for an order that is sent again."""
        return max(1, int(self.deadline - now))


class Start(Enum):
    """What to do with an order for an attempt."""

    SEND = auto()
    KNOWN = auto()  # in flight or ended already: every order may come twice
    BUSY = auto()


class Resume(Enum):
    """What to do with the attempt in flight after its sidecar has come back."""

    NOTHING = auto()
    CONTINUE = auto()  # the sidecar is at it
    RESEND = auto()  # the order was lost, or the sidecar was restarted and has lost it


def start(current: Attempt | None, ended: bool, attempt: str) -> Start:
    """Whether an attempt may begin: one at a time."""
    if ended or (current is not None and current.id == attempt):
        return Start.KNOWN
    return Start.SEND if current is None else Start.BUSY


def resume(current: Attempt | None, restated: tuple[AttemptState, ...]) -> Resume:
    """What a reconnect means for the attempt in flight."""
    if current is None:
        return Resume.NOTHING
    return Resume.CONTINUE if any(each.attempt == current.id for each in restated) else Resume.RESEND


def is_attempt(attempt: str) -> bool:
    """Whether this can be an attempt's id."""
    return _ATTEMPT.fullmatch(attempt) is not None


def offer_problem(offer: Offer) -> str | None:
    """Why the offer can be none; None when it is well formed. The store is looked at by whoever commits it."""
    if not is_attempt(offer.attempt):
        return "an attempt's id has 32 hexadecimal digits"
    if not _MANIFEST.fullmatch(offer.manifest.name) or offer.manifest.size < 1:
        return "a manifest is named by 64 hexadecimal digits and is not empty"
    if not _TRIGGER.fullmatch(offer.trigger):
        return "a trigger is one CamelCase word"
    return None


def request_problem(request: RequestCheckpoint) -> str | None:
    """Why a pod may not ask like this, None when it may."""
    if request.trigger not in REQUESTED:
        return f"a pod asks with trigger {', '.join(sorted(REQUESTED))}"
    if len(request.request) > 64 or len(request.reason) > 1024:
        return "the request's id or reason is too long"
    return None
