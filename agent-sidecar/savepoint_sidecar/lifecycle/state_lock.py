"""Mutual exclusion for the agent's state: it is captured or restored by one task at a time.

A task that cannot wait may end the attempt that holds the lock. This module takes no checkpoint and restores nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from savepoint.errors import Unavailable

from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt

UNREACHABLE_SECONDS: Final = 3.0
"""Seconds that a final checkpoint waits for an attempt whose commit waits for an unreachable authority."""
CONNECT_WAIT_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.05
RECONNECTED: Final = "the agent's process was replaced while it was captured"


class StateLock:
    """The lock of one incarnation, and the attempt that holds it. Used on one event loop."""

    def __init__(self, authority: Authority, monotonic: Callable[[], float], grace_seconds: float) -> None:
        self._authority, self._monotonic = authority, monotonic
        self._unreachable_seconds = min(UNREACHABLE_SECONDS, grace_seconds / 8)
        self._connecting = 0
        self.lock = asyncio.Lock()
        """Held while a checkpoint is taken or restored."""
        self.attempt: CaptureAttempt | None = None
        """The attempt that is running."""

    @property
    def agent_is_connecting(self) -> bool:
        """True while an agent in its connect() waits for the lock; it cannot flush before it has connected."""
        return self._connecting > 0

    def interrupt(self, message: str) -> None:
        """End the running attempt, unless its capture is complete."""
        if self.attempt is not None and not self.attempt.captured:
            self.attempt.interrupt(Unavailable(message))

    @contextlib.asynccontextmanager
    async def for_connect(self) -> AsyncIterator[None]:
        """Hold the lock for an agent that connects.

        The running attempt ends, because the process that it captures has ended; if its capture is complete, it may
        still commit.
        """
        self.interrupt(RECONNECTED)
        self._connecting += 1
        try:
            if not await self._acquire_within(CONNECT_WAIT_SECONDS):
                if self.attempt is not None:
                    self.attempt.interrupt(Unavailable("a new process of the agent cannot wait any longer"))
                await self.lock.acquire()
        finally:
            self._connecting -= 1
        try:
            yield
        finally:
            self.lock.release()

    @contextlib.asynccontextmanager
    async def for_final_checkpoint(
        self, message: str, has_later_state: Callable[[], bool | None]
    ) -> AsyncIterator[None]:
        """Hold the lock for a final checkpoint, which cannot wait long.

        The running attempt ends at once with ``message``; if its capture is complete, it may still commit. If that
        commit waits for an unreachable authority, ``has_later_state`` decides, because only one checkpoint can be left
        for a later commit: True, the agent has provided a later state and the attempt is ended. False, no later state
        will come and the attempt itself is deferred. None, it may still come, and both wait.
        """
        self.interrupt(message)
        connected_at = self._monotonic()
        while not await self._acquire_within(POLL_SECONDS):
            now, attempt, later = self._monotonic(), self.attempt, has_later_state()
            connected_at = now if self._authority.connected else connected_at
            if attempt is None or later is None or now - connected_at < self._unreachable_seconds:
                continue
            if later:
                attempt.interrupt(Unavailable(f"the operator cannot be reached, and {message}"))
            else:
                attempt.defer()
        try:
            yield
        finally:
            self.lock.release()

    async def _acquire_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.lock.acquire()
        return False
