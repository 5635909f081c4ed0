"""The end of an incarnation: the agent's last flush, the last checkpoint, and how much time there is for both.

It takes checkpoints only through ``take``, when it is its turn. The release is the incarnation's own last word.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Final, Protocol

from savepoint.contract import agent_protocol as wire
from savepoint.errors import SavepointError, StateUnstable, StoreUnavailable, Unavailable

from savepoint_sidecar.agent_api.process_session import ProcessSession, ProcessSessions
from savepoint_sidecar.agent_api.quiesce import Transaction
from savepoint_sidecar.authority.authority import Authority
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt
from savepoint_sidecar.checkpoint.checkpointer import Checkpointer, CheckpointOutcome, FinalState
from savepoint_sidecar.lifecycle.config import Clock
from savepoint_sidecar.lifecycle.recovery import Recovery
from savepoint_sidecar.lifecycle.requests import Requests
from savepoint_sidecar.lifecycle.state_lock import StateLock

log = logging.getLogger(__name__)

AFTER_SECONDS: Final = 1.0
"""Of the two seconds that a sidecar has when the grace is spent: for the last checkpoint."""
AGAIN_SECONDS: Final = 1.0
TRIGGER: Final = "Shutdown"
WHY: Final = "the pod is stopping"


class Take(Protocol):
    """Runs one attempt; it is the caller's turn."""

    def __call__(
        self, attempt: CaptureAttempt, session: ProcessSession | None, last: FinalState | None = None
    ) -> Awaitable[CheckpointOutcome]: ...


class Shutdown:
    """Begun once, by the news that the pod stops or by the agent's exit; over when ``ended`` has returned."""

    def __init__(
        self,
        authority: Authority,
        sessions: ProcessSessions,
        requests: Requests,
        recovery: Recovery,
        checkpointer: Checkpointer,
        *,
        turn: StateLock,
        take: Take,
        grace_seconds: float,
        edges: Clock,
    ) -> None:
        self._authority, self._sessions, self._requests = authority, sessions, requests
        self._recovery, self._checkpointer = recovery, checkpointer
        self._turn, self._take = turn, take
        self._grace_seconds, self._edges = grace_seconds, edges
        self._last = FinalState()
        self._ends_at: float | None = None
        self._task: asyncio.Task[bool] | None = None
        self.took_last = False
        """The last checkpoint was taken after the agent's end: nothing was written since."""

    @property
    def begun(self) -> bool:
        """Whether the pod is stopping."""
        return self._task is not None

    def begin(self) -> None:
        """Ask the agent for its last flush and start copying. May be told twice."""
        if self._task is None:
            self._ends_at = self._edges.monotonic() + self._grace_seconds + AFTER_SECONDS
            self._authority.hurry()
            self._task = asyncio.ensure_future(self._run())

    async def ended(self) -> bool:
        """The agent has exited: whether all of its state was stored within the time that is left."""
        self.begin()
        assert self._task is not None and self._ends_at is not None
        self._last.ended.set()
        try:
            async with asyncio.timeout(max(AFTER_SECONDS, self._ends_at - self._edges.monotonic())):
                return await asyncio.shield(self._task)
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Give up what is still under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def last_attempt(self, identifier: str, trigger: str, seconds: float) -> CaptureAttempt:
        """An attempt after which nothing comes: when the authority is away it is left for later."""
        ends_at = self._edges.monotonic() + seconds
        if self._ends_at is not None:
            ends_at = min(ends_at, self._ends_at)
        return CaptureAttempt(identifier, trigger, ends_at, self._edges.monotonic, deferrable=True)

    async def order_or_own(self, trigger: str, seconds: float) -> CaptureAttempt:
        """As the authority orders it, or under an id of our own when it cannot be asked."""
        identifier = self._edges.random_id()
        try:
            identifier = (await self._requests.order(trigger, seconds)).attempt
        except (SavepointError, TimeoutError) as error:
            log.warning("no order for the last checkpoint (%s); it is made all the same", error or "no answer")
        return self.last_attempt(identifier, trigger, seconds)

    async def _run(self) -> bool:
        session, before = self._sessions.live, self._turn.attempt
        try:
            if session is None:
                self._checkpointer.require_values(False)
        except Unavailable as error:
            log.info("no last checkpoint: %s", error)
            return await self._see_through(before)
        flushing = asyncio.ensure_future(self._flush(session)) if session is not None else None
        try:
            async with self._turn.of_end(WHY, lambda: session is None or self._superseded()):
                with contextlib.suppress(StoreUnavailable, Unavailable):  # the cut that is known will do
                    await self._recovery.rebase()
                if session is None and not self._last.ended.is_set() and self._authority.connected:
                    await self._take_while_it_ends()
                await self._take_last(session)
                self.took_last = True
        except SavepointError as error:
            log.warning("no last checkpoint: %s", error)
            return before is not None and before.kept
        finally:
            if flushing is not None:
                flushing.cancel()
        return True

    async def _see_through(self, attempt: CaptureAttempt | None) -> bool:
        """The agent has gone, and what it handed over last may be in the attempt under way: whether that is stored."""
        if attempt is None:
            return False
        async with self._turn.of_end(WHY, lambda: False):
            return attempt.kept

    def _superseded(self) -> bool | None:
        """Whether the agent has handed over its last state; None while it may."""
        return True if self._last.flush is not None else False if self._last.ended.is_set() else None

    async def _take_last(self, session: ProcessSession | None) -> None:
        """As often as there is time for it: what is in the way may pass."""
        while True:
            attempt = await self.order_or_own(TRIGGER, self._grace_seconds)
            try:
                await self._take(attempt, session, self._last)
                return
            except (StoreUnavailable, StateUnstable, Unavailable) as error:
                nothing = session is not None and self._last.ended.is_set() and self._last.flush is None
                assert self._ends_at is not None
                if nothing or attempt.interrupted or self._edges.monotonic() + AGAIN_SECONDS > self._ends_at:
                    raise
                log.warning("the last checkpoint is tried again: %s: %s", error.reason, error)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _take_while_it_ends(self) -> None:
        """An agent without the SDK, told to stop and not gone yet: what it has done so far, in case it takes too long.

        It is never left for later: there is one place for that, and it belongs to the checkpoint after the end.
        """
        try:
            order = await self._requests.order(TRIGGER, self._grace_seconds)
            ends_at = self._edges.monotonic() + self._grace_seconds / 2
            await self._take(CaptureAttempt(order.attempt, TRIGGER, ends_at, self._edges.monotonic), None)
        except (SavepointError, TimeoutError) as error:
            log.warning("no checkpoint while the agent ends: %s", error or "no order came in time")

    async def _flush(self, session: ProcessSession) -> None:
        transaction = Transaction(self._edges.random_id(), self._grace_seconds)
        session.begin(transaction)
        session.send(wire.Stopping(transaction.id, self._grace_seconds))
        with contextlib.suppress(asyncio.CancelledError):
            try:
                self._last.flush = await transaction.flush(self._grace_seconds)
                transaction.resume()
            except SavepointError as error:
                log.warning("the agent did not hand over its state at the end: %s", error)
