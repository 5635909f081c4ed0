"""What becomes of the one attempt an agent has in flight, and what a sidecar may say of one. Pure; it sends nothing.

Time comes in as an argument.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum, auto

from savepoint.contract.control_protocol import AttemptState, Offer, RequestCheckpoint
from savepoint.repository.format.manifest import KINDS

from savepoint_operator.model.views import Contents

ANSWER_GRACE_SECONDS = 5.0
"""How long after the deadline a sidecar may still report its own failure before the operator does."""
UNKNOWN_DEADLINE_SECONDS = 600
"""Deadline of an attempt that a sidecar restates and that this leader did not order."""
URGENT = frozenset({"Shutdown", "Finish", "Drain"})
"""Triggers whose pod is about to go: an operator that stops finishes these first."""
MAY_WAIT = frozenset({"Interval", "Manual"})
"""Triggers that an operator that stops leaves to the next one: no pod and nothing else waits for them."""
REQUESTED = frozenset({"Agent", "Shutdown", "Finish"})
"""Triggers that a pod may ask for."""

TRIGGERS = frozenset({"Manual", "Interval", "Drain", "Shutdown", "Rollback", "Agent", "Finish"})
COMPONENTS_MOST = 512
OPERATIONS_MOST = 512
NAME_MOST = 1024

_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_MANIFEST = _DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class InFlight:
    """An attempt in flight. ``deadline`` is in monotonic seconds."""

    id: str
    trigger: str
    deadline: float
    after: str = "Resume"
    stage: str = "Pending"

    def at(self, stage: str) -> "InFlight":
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


def start(current: InFlight | None, ended: bool, attempt: str) -> Start:
    """Whether an attempt may begin: one at a time."""
    if ended or (current is not None and current.id == attempt):
        return Start.KNOWN
    return Start.SEND if current is None else Start.BUSY


def resume(current: InFlight | None, restated: tuple[AttemptState, ...]) -> Resume:
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
    if offer.trigger not in TRIGGERS:
        return f"a trigger is one of {', '.join(sorted(TRIGGERS))}"
    if offer.consistency not in ("Application", "Fuzzy"):
        return "a checkpoint's consistency is Application or Fuzzy"
    if min(offer.logical_bytes, offer.stored_bytes, offer.uploaded_bytes, offer.open_operations) < 0:
        return "a size is less than nothing"
    return told_problem(offer)


def told_problem(told: Offer | Contents) -> str | None:
    """Why what is told of a checkpoint cannot be shown; None when it can."""
    names = {each.name for each in told.components}
    if len(told.components) > COMPONENTS_MOST or len(names) != len(told.components):
        return f"it has more than {COMPONENTS_MOST} components, or two of one name"
    for each in told.components:
        if len(each.name) > NAME_MOST or each.kind not in KINDS or not _DIGEST.fullmatch(each.digest):
            return f"component {each.name[:80]!r} has no proper name, kind or digest"
        if each.size < 0:
            return f"component {each.name[:80]!r} is smaller than nothing"
    words = (told.step or "", *told.uncertain_operations)
    if len(words) > OPERATIONS_MOST or any(len(each) > NAME_MOST for each in words):
        return f"it tells more than {OPERATIONS_MOST} operations, or one by more than {NAME_MOST} characters"
    return None


def request_problem(request: RequestCheckpoint) -> str | None:
    """Why a pod may not ask like this, None when it may."""
    if request.trigger not in REQUESTED:
        return f"a pod asks with trigger {', '.join(sorted(REQUESTED))}"
    if len(request.request) > 64 or len(request.reason) > 1024:
        return "the request's id or reason is too long"
    return None
