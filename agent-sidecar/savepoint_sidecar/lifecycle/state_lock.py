"""Whose turn it is: one thing happens to the agent's state at a time, and who cannot wait may end what is under way.

A lock and the attempt that holds it. It takes no checkpoint and brings nothing back.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from savepoint.errors import Unavailable

from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt

AWAY_SECONDS: Final = 3.0
"""How long the end of an agent waits for an attempt whose commit waits for an authority that is away."""
CONNECT_WAIT_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.05
CONNECTED_ANEW: Final = "the agent has connected anew while it was captured"


class StateLock:
    """Of one incarnation. Everything runs on its event loop."""

    def __init__(self, authority: Authority, monotonic: Callable[[], float], grace_seconds: float) -> None:
        self._authority, self._monotonic = authority, monotonic
        self._away_seconds = min(AWAY_SECONDS, grace_seconds / 8)
        self._connecting = 0
        self.lock = asyncio.Lock()
        """Held by whoever takes or brings back a cut."""
        self.attempt: CaptureAttempt | None = None
        """The one that is being taken."""

    @property
    def agent_waits(self) -> bool:
        """An agent is in its connect(): it waits for the lock, and hands over nothing before it has it."""
        return self._connecting > 0

    def interrupt(self, why: str) -> None:
        """End the attempt under way, unless what it captures is complete."""
        if self.attempt is not None and not self.attempt.sealed:
            self.attempt.interrupt(Unavailable(why))

    @contextlib.asynccontextmanager
    async def of_connect(self) -> AsyncIterator[None]:
        """The lock, for an agent that connects. An attempt that had not captured everything dies with the process it
        captured; a sealed one may commit."""
        self.interrupt(CONNECTED_ANEW)
        self._connecting += 1
        try:
            if not await self._locked_within(CONNECT_WAIT_SECONDS):
                if self.attempt is not None:
                    self.attempt.interrupt(Unavailable("the agent has started anew and cannot wait any longer"))
                await self.lock.acquire()
        finally:
            self._connecting -= 1
        try:
            yield
        finally:
            self.lock.release()

    @contextlib.asynccontextmanager
    async def of_end(self, why: str, superseded: Callable[[], bool | None]) -> AsyncIterator[None]:
        """The lock, for an end that cannot wait: what is not sealed ends at once, and what is sealed may be committed.

        When that waits for an authority that is away, ``superseded`` says whether a later state is at hand (it makes
        way), will not come (it is left for later itself), or may yet come (None: both wait). Only one can be left.
        """
        self.interrupt(why)
        heard = self._monotonic()
        while not await self._locked_within(POLL_SECONDS):
            now, attempt, later = self._monotonic(), self.attempt, superseded()
            heard = now if self._authority.connected else heard
            if attempt is None or later is None or now - heard < self._away_seconds:
                continue
            if later:
                attempt.interrupt(Unavailable(f"the operator is away, and {why}"))
            else:
                attempt.defer()
        try:
            yield
        finally:
            self.lock.release()

    async def _locked_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.lock.acquire()
        return False
