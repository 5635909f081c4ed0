"""The pods connected to this leader, by its own monotonic clock: an input to the take-over rules.

Kept in memory only, on purpose: after a change of leader every silence is counted from zero.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from savepoint_operator.model.views import AgentRef, Contact, PodIdentity

FORGET_SECONDS = 3600.0
"""A pod whose connection closed longer ago is forgotten: like one that never connected, it is past every limit."""


@dataclass
class _PodConnections:
    name: str
    connections: int = 0
    closed_at: float | None = None
    released: bool = False


class PodLiveness:
    """Open connections by pod UID, of either role. All methods run on the event loop."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._pods: dict[str, _PodConnections] = {}
        self._waiters: dict[AgentRef, asyncio.Event] = {}
        self._leader_since = monotonic()

    @property
    def leader_since(self) -> float:
        """Monotonic seconds at which this leader began to accept connections."""
        return self._leader_since

    def start_leading(self) -> None:
        """Note that leadership begins now, and discard earlier observations."""
        self._pods.clear()
        self._leader_since = self._monotonic()

    def connection_opened(self, pod: PodIdentity) -> None:
        """Note that a connection of the pod has opened."""
        self._forget_old_pods()
        self._pods.setdefault(pod.uid, _PodConnections(pod.name)).connections += 1

    def connection_closed(self, pod: PodIdentity) -> None:
        """Note that a connection of the pod has closed."""
        known = self._pods.setdefault(pod.uid, _PodConnections(pod.name, 1))
        known.connections = max(0, known.connections - 1)
        if known.connections == 0:
            known.closed_at = self._monotonic()

    def released(self, agent: AgentRef, pod: PodIdentity) -> None:
        """Note that the pod has released its epoch, and wake the pods that wait for it."""
        self._pods.setdefault(pod.uid, _PodConnections(pod.name)).released = True
        self.wake(agent)

    def reactivated(self, pod: PodIdentity) -> None:
        """Discard the pod's release: its sidecar restarted, still holds the epoch and works again."""
        if pod.uid in self._pods:
            self._pods[pod.uid].released = False

    def contact(self, pod_uid: str) -> Contact:
        """Return what is known of the pod's connections."""
        known = self._pods.get(pod_uid)
        if known is None:
            return Contact()
        connected = known.connections > 0
        return Contact(connected, None if connected else known.closed_at, known.released, known.name)

    def wake(self, agent: AgentRef) -> None:
        """Wake the tasks that wait for a change of this agent."""
        event = self._waiters.pop(agent, None)
        if event is not None:
            event.set()

    async def wait_for_change(self, agent: AgentRef, seconds: float) -> None:
        """Return at the next change of the agent, or after the given number of seconds."""
        event = self._waiters.setdefault(agent, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def _forget_old_pods(self) -> None:
        before = self._monotonic() - FORGET_SECONDS
        old = [
            uid
            for uid, known in self._pods.items()
            if known.connections == 0 and known.closed_at is not None and known.closed_at < before
        ]
        for uid in old:
            del self._pods[uid]
