"""Which pods this leader hears, by its own monotonic clock: what the rules of take-over are decided on.

Memory only, on purpose: after a change of leader every silence is counted anew.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from savepoint_operator.model.views import AgentRef, Contact, PodIdentity

FORGET_SECONDS = 3600.0
"""A pod whose connection ended longer ago is as good as one that never connected: both are past every bound."""


@dataclass
class _Heard:
    name: str
    connections: int = 0
    closed_at: float | None = None
    released: bool = False


class PodLiveness:
    """Connections by pod UID, of either role. All methods run on the event loop."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._heard: dict[str, _Heard] = {}
        self._pulses: dict[AgentRef, asyncio.Event] = {}
        self._leader_since = monotonic()

    @property
    def leader_since(self) -> float:
        """Monotonic seconds at which this leader began to listen."""
        return self._leader_since

    def lead(self) -> None:
        """Leadership begins now: what was heard before counts no more."""
        self._heard.clear()
        self._leader_since = self._monotonic()

    def opened(self, pod: PodIdentity) -> None:
        """A connection of the pod is open."""
        self._forget()
        self._heard.setdefault(pod.uid, _Heard(pod.name)).connections += 1

    def closed(self, pod: PodIdentity) -> None:
        """A connection of the pod has ended."""
        heard = self._heard.setdefault(pod.uid, _Heard(pod.name, 1))
        heard.connections = max(0, heard.connections - 1)
        if heard.connections == 0:
            heard.closed_at = self._monotonic()

    def released(self, agent: AgentRef, pod: PodIdentity) -> None:
        """The pod has ended its work; whoever waits for it is woken."""
        self._heard.setdefault(pod.uid, _Heard(pod.name)).released = True
        self.pulse(agent)

    def returned(self, pod: PodIdentity) -> None:
        """A pod that had released works again (its sidecar was started anew, and holds the epoch still)."""
        if pod.uid in self._heard:
            self._heard[pod.uid].released = False

    def contact(self, pod_uid: str) -> Contact:
        """What is known of the pod."""
        heard = self._heard.get(pod_uid)
        if heard is None:
            return Contact()
        connected = heard.connections > 0
        return Contact(connected, None if connected else heard.closed_at, heard.released, heard.name)

    def pulse(self, agent: AgentRef) -> None:
        """Wake whoever waits for a change of this agent."""
        event = self._pulses.pop(agent, None)
        if event is not None:
            event.set()

    async def changed(self, agent: AgentRef, seconds: float) -> None:
        """Return at the next pulse of the agent, or after so many seconds."""
        event = self._pulses.setdefault(agent, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def _forget(self) -> None:
        before = self._monotonic() - FORGET_SECONDS
        old = [
            uid
            for uid, heard in self._heard.items()
            if heard.connections == 0 and heard.closed_at is not None and heard.closed_at < before
        ]
        for uid in old:
            del self._heard[uid]
