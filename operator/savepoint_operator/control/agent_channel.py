"""What this leader keeps of one agent in memory: its session, its attempt, what has ended. No I/O, no decisions."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from savepoint.contract.control_protocol import Checkpoint, Committed, Refused

from savepoint_operator.control.rate_limit import RateLimit
from savepoint_operator.model.views import SessionView
from savepoint_operator.rules.attempt import InFlight

ENDED_KEPT = 32


class SidecarConnection(Protocol):
    """What the registry needs of a connected sidecar."""

    def view(self, attempt: str | None) -> SessionView:
        """How the session stands, with the attempt in flight."""
        ...

    async def order(self, message: Checkpoint) -> None:
        """Send the order. Raises Unavailable."""
        ...

    async def stop(self, reason: str, message: str) -> None:
        """Tell the sidecar that it commits nothing more, and end the session. Never raises."""
        ...


@dataclass
class AgentChannel:
    """What is kept of one agent in memory."""

    session: SidecarConnection | None = None
    holder: tuple[str, int] | None = None  # pod uid and epoch, as far as this leader has seen
    attempt: InFlight | None = None
    timer: asyncio.Task[None] | None = None
    ended: "OrderedDict[str, str]" = field(default_factory=OrderedDict)  # attempt -> reason, empty when committed
    commits: "dict[str, asyncio.Task[Committed | Refused]]" = field(default_factory=dict)
    restoring: set[object] = field(default_factory=set)  # sessions of pods that were granted and have not reported
    between_until: float = 0.0  # monotonic seconds until which the next word of an agent without a pod is awaited
    begun: RateLimit | None = None  # how many attempts its pod may begin by itself

    def knows(self, attempt: str) -> bool:
        """Whether the attempt was ordered, restated, or has ended."""
        in_flight = self.attempt is not None and self.attempt.id == attempt
        return in_flight or attempt in self.ended or attempt in self.commits

    def end(self, attempt: str, reason: str) -> None:
        """The attempt has ended; ``reason`` is empty when it was committed."""
        self.ended[attempt] = reason
        self.ended.move_to_end(attempt)
        while len(self.ended) > ENDED_KEPT:
            self.ended.popitem(last=False)
        self.clear(attempt)

    def clear(self, attempt: str) -> None:
        """The attempt is no longer in flight."""
        if self.attempt is None or self.attempt.id != attempt:
            return
        self.attempt = None
        if self.timer is not None and self.timer is not asyncio.current_task():
            self.timer.cancel()
        self.timer = None
