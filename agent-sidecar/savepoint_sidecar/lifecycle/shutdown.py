"""The shutdown of an incarnation: the agent's last flush, the final checkpoint, and the time for both.

It takes checkpoints only through ``take``, under the state lock. The incarnation itself reports the release.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Final, Protocol

from savepoint.contract import agent_protocol as wire
from savepoint.contract.vocabulary import CheckpointOutcome, Trigger
from savepoint.errors import SavepointError, StateUnstable, StoreUnavailable, Unavailable

from savepoint_sidecar.agent_api.process_session import ProcessSession
from savepoint_sidecar.agent_api.quiesce import Transaction
from savepoint_sidecar.checkpoint.capture_attempt import CaptureAttempt
from savepoint_sidecar.checkpoint.checkpointer import FinalState
from savepoint_sidecar.lifecycle.context import IncarnationContext

log = logging.getLogger(__name__)

EXTRA_SECONDS: Final = 1.0
"""Kubernetes gives a sidecar two seconds after the grace period; this part of them is for the final checkpoint."""
RETRY_SECONDS: Final = 1.0
STOPPING: Final = "the pod is stopping"


class Take(Protocol):
    """A function that runs one attempt. The caller holds the state lock."""

    def __call__(
        self, attempt: CaptureAttempt, session: ProcessSession | None, final: FinalState | None = None
    ) -> Awaitable[CheckpointOutcome]: ...


class Shutdown:
    """The shutdown of one incarnation, from the preStop hook or the agent's exit to the end of ``finish``."""

    def __init__(self, context: IncarnationContext, take: Take) -> None:
        self._context, self._take = context, take
        self._grace_seconds, self._monotonic = context.config.grace_seconds, context.clock.monotonic
        self._final = FinalState()
        self._deadline: float | None = None
        self._task: asyncio.Task[bool] | None = None
        self.took_final_checkpoint = False
        """True if the final checkpoint was taken after the agent's end, so that no file has changed since."""

    def begin(self) -> None:
        """Order the agent's last flush and start copying. Further calls do nothing."""
        if self._task is None:
            self._context.state.shutting_down = True
            self._deadline = self._monotonic() + self._grace_seconds + EXTRA_SECONDS
            self._context.authority.retry_quickly()
            self._task = asyncio.ensure_future(self._run())

    async def finish(self) -> bool:
        """Finish the final checkpoint after the agent has exited. Return whether all state was stored in time."""
        self.begin()
        assert self._task is not None and self._deadline is not None
        self._final.ended.set()
        try:
            async with asyncio.timeout(max(EXTRA_SECONDS, self._deadline - self._monotonic())):
                return await asyncio.shield(self._task)
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Cancel what is still running."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def final_attempt(self, trigger: str, seconds: float) -> CaptureAttempt:
        """Return a deferrable attempt: as the authority orders it, or with a random id if it cannot be reached."""
        identifier = self._context.clock.random_id()
        try:
            identifier = (await self._context.requests.request_order(trigger, seconds)).attempt
        except (SavepointError, TimeoutError) as error:
            log.warning("operator unreachable (%s); taking the final checkpoint anyway", str(error) or "no answer")
        deadline = self._monotonic() + seconds
        if self._deadline is not None:
            deadline = min(deadline, self._deadline)
        return CaptureAttempt(identifier, trigger, deadline, self._monotonic, deferrable=True)

    async def _run(self) -> bool:
        context = self._context
        session, running = context.sessions.live, context.state_lock.attempt
        try:
            if session is None:
                context.checkpointer.require_capturable(has_values=False)
        except Unavailable as error:
            log.info("no final checkpoint: %s", error)
            return await self._finish_attempt(running)
        flushing = asyncio.ensure_future(self._flush(session)) if session is not None else None
        try:
            async with context.state_lock.for_final_checkpoint(
                STOPPING, lambda: session is None or self._has_later_state()
            ):
                with contextlib.suppress(StoreUnavailable, Unavailable):  # the known parent is good enough
                    await context.recovery.rebase()
                if session is None and not self._final.ended.is_set() and context.authority.connected:
                    await self._take_while_agent_ends()
                await self._take_final(session)
                self.took_final_checkpoint = True
        except SavepointError as error:
            log.warning("no final checkpoint: %s", error)
            return running is not None and running.succeeded
        except Exception:
            log.exception("no final checkpoint: it failed unexpectedly; report this as a bug")
            return running is not None and running.succeeded
        finally:
            if flushing is not None:
                flushing.cancel()
        return True

    async def _finish_attempt(self, attempt: CaptureAttempt | None) -> bool:
        """Wait for the running attempt, which may hold the last state of an agent that has exited.

        Return whether it was stored.
        """
        if attempt is None:
            return False
        async with self._context.state_lock.for_final_checkpoint(STOPPING, lambda: False):
            return attempt.succeeded

    def _has_later_state(self) -> bool | None:
        """Return whether the agent has flushed its last state; None while it still may."""
        return True if self._final.flush is not None else False if self._final.ended.is_set() else None

    async def _take_final(self, session: ProcessSession | None) -> None:
        """Take the final checkpoint. Retry transient faults until the time is up."""
        while True:
            attempt = await self.final_attempt(Trigger.SHUTDOWN, self._grace_seconds)
            try:
                await self._take(attempt, session, self._final)
                return
            except (StoreUnavailable, StateUnstable, Unavailable) as error:
                never_flushed = session is not None and self._final.ended.is_set() and self._final.flush is None
                assert self._deadline is not None
                if never_flushed or attempt.interrupted or self._monotonic() + RETRY_SECONDS > self._deadline:
                    raise
                log.warning("the final checkpoint failed: %s: %s; retrying", error.reason, error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _take_while_agent_ends(self) -> None:
        """Take a checkpoint of an agent without the SDK that has not exited yet, in case its exit takes too long.

        It is never deferred: only one checkpoint can be left for a later commit, and that must be the final one.
        """
        try:
            order = await self._context.requests.request_order(Trigger.SHUTDOWN, self._grace_seconds)
            deadline = self._monotonic() + self._grace_seconds / 2
            await self._take(CaptureAttempt(order.attempt, Trigger.SHUTDOWN, deadline, self._monotonic), None)
        except (SavepointError, TimeoutError) as error:
            log.warning("no checkpoint while the agent ends: %s", str(error) or "no order arrived in time")

    async def _flush(self, session: ProcessSession) -> None:
        transaction = Transaction(self._context.clock.random_id(), self._grace_seconds)
        session.begin_transaction(transaction)
        session.send(wire.Stopping(transaction.id, self._grace_seconds))
        with contextlib.suppress(asyncio.CancelledError):
            try:
                self._final.flush = await transaction.flush(self._grace_seconds)
                transaction.resume()
            except SavepointError as error:
                log.warning("the agent did not flush its last state: %s", error)
