"""What becomes of the one attempt an agent has in flight. Pure: time comes in as an argument; it sends nothing."""

from dataclasses import dataclass, replace
from enum import Enum, auto

from savepoint.contract.control import AttemptState

ANSWER_GRACE_SECONDS = 5.0
"""How long after the deadline a sidecar may still report its own failure before the operator does."""
UNKNOWN_DEADLINE_SECONDS = 600
"""Deadline of an attempt that a sidecar restates and that this leader did not order."""
URGENT = frozenset({"Shutdown", "Finish", "Drain", "Preemption"})
"""Triggers whose pod is about to go: an operator that stops finishes these first."""


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
