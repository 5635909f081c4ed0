"""Rules for the one attempt that an agent has in flight, and for messages about it. Pure.

It sends nothing; time is an argument.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeVar

from savepoint.contract.capture_report import report_problem
from savepoint.contract.control_protocol import AttemptState, Offer, RequestCheckpoint
from savepoint.contract.shrinkage import MAX_SHRINKAGES, Shrinkage
from savepoint.contract.vocabulary import Consistency, Reason, Trigger
from savepoint.repository.format.manifest import COMPONENT_KINDS

from savepoint_operator.model.views import Contents

Described = TypeVar("Described", Offer, Contents)

ANSWER_GRACE_SECONDS = 5.0
"""Seconds after the deadline in which a sidecar may report its own failure before the operator fails the attempt."""
UNKNOWN_DEADLINE_SECONDS = 600
"""Deadline of an attempt that a sidecar restates and that this leader did not order."""
URGENT = frozenset({Trigger.SHUTDOWN, Trigger.FINISH, Trigger.DRAIN})
"""Triggers of a pod that is about to end: an operator that stops finishes these first."""
DEFERRABLE = frozenset({Trigger.INTERVAL, Trigger.MANUAL})
"""Triggers that an operator that stops leaves to the next leader, since no pod waits for them."""
REQUESTABLE = frozenset({Trigger.AGENT, Trigger.SHUTDOWN, Trigger.FINISH})
"""Triggers that a pod may request."""

TRIGGERS = frozenset(Trigger)
MAX_COMPONENTS = 512
SHOWN_OPERATIONS = 100
"""The most uncertain operations that a status lists."""
MAX_NAME = 1024
SHOWN_CHARACTERS = 256
"""The most characters of a step or an operation's id that a status shows."""
MAX_REQUEST_ID = 64
MAX_REQUEST_REASON = 1024

_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_MANIFEST = _DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class InFlight:
    """An attempt in flight. ``deadline`` is in monotonic seconds."""

    id: str
    trigger: str
    deadline: float
    after: str = "Resume"
    phase: str = Reason.PENDING

    def in_phase(self, phase: str) -> "InFlight":
        """Return the same attempt in a later phase."""
        return replace(self, phase=phase)

    def expires_in(self, now: float) -> float:
        """Return the seconds until the operator fails the attempt; never negative."""
        return max(0.0, self.deadline + ANSWER_GRACE_SECONDS - now)

    def seconds_left(self, now: float) -> int:
        """Return the whole seconds left to the sidecar, for an order that is sent again; at least 1."""
        return max(1, int(self.deadline - now))


class OrderAction(Enum):
    """The action to take on an order for an attempt."""

    SEND = auto()
    KNOWN = auto()  # in flight or ended already: every order may be repeated
    BUSY = auto()


class ReconnectAction(Enum):
    """The action to take on the attempt in flight after its sidecar has reconnected."""

    NOTHING = auto()
    CONTINUE = auto()  # the sidecar is working on it
    RESEND = auto()  # the order was lost, or the sidecar restarted and lost it


def order_action(current: InFlight | None, ended: bool, attempt: str) -> OrderAction:
    """Decide whether an attempt may begin: one at a time."""
    if ended or (current is not None and current.id == attempt):
        return OrderAction.KNOWN
    return OrderAction.SEND if current is None else OrderAction.BUSY


def reconnect_action(current: InFlight | None, restated: tuple[AttemptState, ...]) -> ReconnectAction:
    """Decide what a reconnect means for the attempt in flight."""
    if current is None:
        return ReconnectAction.NOTHING
    known = any(each.attempt == current.id for each in restated)
    return ReconnectAction.CONTINUE if known else ReconnectAction.RESEND


def is_attempt(attempt: str) -> bool:
    """Return whether the text can be the id of an attempt."""
    return _ATTEMPT.fullmatch(attempt) is not None


def offer_problem(offer: Offer) -> str | None:
    """Return why the offer is malformed, or None. The commit itself checks the offer against the store."""
    if not is_attempt(offer.attempt):
        return "an attempt id must be 32 hexadecimal digits"
    if not _MANIFEST.fullmatch(offer.manifest.name) or offer.manifest.size < 1:
        return "a manifest must have a name of 64 hexadecimal digits and must not be empty"
    if offer.trigger not in TRIGGERS:
        return f"trigger must be one of {', '.join(sorted(TRIGGERS))}"
    if offer.consistency not in frozenset(Consistency):
        return "consistency must be Application or Fuzzy"
    counts = (offer.open_operations, offer.uncertain_count)
    if min(offer.logical_bytes, offer.stored_bytes, offer.uploaded_bytes, *counts) < 0:
        return "sizes and counts must not be negative"
    return contents_problem(offer)


def contents_problem(described: Offer | Contents) -> str | None:
    """Return why the description of a checkpoint cannot be shown in a status, or None."""
    names = {each.name for each in described.components}
    if len(described.components) > MAX_COMPONENTS or len(names) != len(described.components):
        return f"it has more than {MAX_COMPONENTS} components, or two with the same name"
    for each in described.components:
        if len(each.name) > MAX_NAME or each.kind not in COMPONENT_KINDS or not _DIGEST.fullmatch(each.digest):
            return f"component {each.name[:80]!r} has an invalid name, kind or digest"
        if each.size < 0:
            return f"the size of component {each.name[:80]!r} must not be negative"
    if len(described.shrinkages) > MAX_SHRINKAGES or not all(map(_is_shown, described.shrinkages)):
        return f"it lists more than {MAX_SHRINKAGES} shrinkages, or an invalid one"
    return report_problem(described.capture) if described.capture is not None else None


def shortened(described: Described) -> Described:
    """Return the description with as much of its step and operations as a status shows, and their whole count.

    An agent may have any number of them; what cannot be shown never keeps a checkpoint from being committed.
    """
    listed, step = described.uncertain_operations, described.step
    return replace(
        described,
        step=_shortened_text(step) if step is not None else None,
        uncertain_operations=tuple(map(_shortened_text, listed[:SHOWN_OPERATIONS])),
        uncertain_count=max(described.uncertain_count, len(listed)),
    )


def _shortened_text(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def _is_shown(shrinkage: Shrinkage) -> bool:
    counts = (shrinkage.bytes_before, shrinkage.bytes_now, shrinkage.files_before or 0, shrinkage.files_now or 0)
    return shrinkage.sequence > 0 and len(shrinkage.component) <= MAX_NAME and min(counts) >= 0


def request_problem(request: RequestCheckpoint) -> str | None:
    """Return why a pod's request is malformed, or None."""
    if request.trigger not in REQUESTABLE:
        return f"the trigger of a pod's request must be one of {', '.join(sorted(REQUESTABLE))}"
    if len(request.request) > MAX_REQUEST_ID or len(request.reason) > MAX_REQUEST_REASON:
        return "the request's id or reason is too long"
    return None
