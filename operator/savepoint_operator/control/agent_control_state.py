"""The in-memory state of one agent on this leader: its session, its attempt, recent outcomes. No I/O, no decisions."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from savepoint.contract.control_protocol import Checkpoint, Committed, Refused

from savepoint_operator.control.rate_limit import RateLimit
from savepoint_operator.model.views import SessionView
from savepoint_operator.rules.attempt import InFlight

MAX_ENDED = 32
"""Outcomes of ended attempts that are remembered per agent."""


class SidecarConnection(Protocol):
    """A connected sidecar, as the registry uses it."""

    def view(self, attempt: str | None) -> SessionView:
        """Return the state of the session, with the given attempt in flight."""
        ...

    async def order(self, message: Checkpoint) -> None:
        """Send the order. Raises Unavailable."""
        ...

    async def stop(self, reason: str, message: str) -> None:
        """Tell the sidecar that it may commit nothing more, and end the session. Never raises."""
        ...


@dataclass
class AgentControlState:
    """The in-memory state of one agent."""

    sidecar: SidecarConnection | None = None
    holder: tuple[str, int] | None = None
    """Pod UID and epoch of the newest grant that this leader has seen."""
    attempt: InFlight | None = None
    deadline_task: asyncio.Task[None] | None = None
    ended: "OrderedDict[str, str]" = field(default_factory=OrderedDict)
    """Reason by attempt; empty if it was committed."""
    commits: "dict[str, asyncio.Task[Committed | Refused]]" = field(default_factory=dict)
    restoring: set[object] = field(default_factory=set)
    """Sessions of pods that were granted an epoch and have not reported their restore."""
    handover_until: float = 0.0
    """Monotonic seconds until which a message from the agent's next pod is expected."""
    attempt_limit: RateLimit | None = None
    """Limits the attempts that its pod begins on its own."""

    def knows(self, attempt: str) -> bool:
        """Return whether the attempt was ordered, restated, or has ended."""
        in_flight = self.attempt is not None and self.attempt.id == attempt
        return in_flight or attempt in self.ended or attempt in self.commits

    def end(self, attempt: str, reason: str) -> None:
        """Remember that the attempt has ended; ``reason`` is empty if it was committed."""
        self.ended[attempt] = reason
        self.ended.move_to_end(attempt)
        while len(self.ended) > MAX_ENDED:
            self.ended.popitem(last=False)
        self.clear(attempt)

    def clear(self, attempt: str) -> None:
        """Stop tracking the attempt as in flight."""
        if self.attempt is None or self.attempt.id != attempt:
            return
        self.attempt = None
        if self.deadline_task is not None and self.deadline_task is not asyncio.current_task():
            self.deadline_task.cancel()
        self.deadline_task = None
