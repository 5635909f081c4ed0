"""The authority's orders: each ordered checkpoint is taken once or declined, and a stop ends all work."""

import asyncio
import contextlib
import logging
from typing import Final

from savepoint.contract.control_protocol import Checkpoint, Refused, Stop, Welcome
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.checkpoint.failures import to_savepoint_error
from savepoint_sidecar.lifecycle.attempts import AttemptRunner
from savepoint_sidecar.lifecycle.context import IncarnationContext
from savepoint_sidecar.lifecycle.fence import Fence
from savepoint_sidecar.lifecycle.state_lock import RECONNECTED
from savepoint_sidecar.lifecycle.tasks import BackgroundTasks

log = logging.getLogger(__name__)

RECONNECT_SECONDS: Final = 5.0
"""Seconds that an ordered checkpoint waits for an agent with the SDK that is not connected."""
FIRST_CONNECT_SECONDS: Final = 20.0
"""The same for an agent without files, which cannot be captured before its first connect."""
POLL_SECONDS: Final = 0.05
REMEMBERED_ATTEMPTS: Final = 64


class OrderHandler:
    """The handler of one incarnation's orders."""

    def __init__(
        self, context: IncarnationContext, attempts: AttemptRunner, fence: Fence, tasks: BackgroundTasks
    ) -> None:
        self._context, self._attempts, self._fence, self._tasks = context, attempts, fence, tasks
        self._seen: dict[str, None] = {}
        """Ids of ordered attempts, because every order may be repeated."""

    async def run(self) -> None:
        """Handle orders until the authority is closed."""
        context = self._context
        async for order in context.authority.orders():
            match order:
                case Checkpoint():
                    self._handle_checkpoint(order)
                case Refused():
                    repeatable = context.requests.handle_refusal(order)
                    if repeatable is not None:
                        self._tasks.spawn(context.requests.forward(*repeatable, after=context.state_lock.lock))
                case Stop() if context.state.stopped is None:
                    log.error(
                        "this incarnation was stopped: %s: %s; taking no more checkpoints", order.reason, order.message
                    )
                    context.state.stopped = RefusedError(order.message, order.reason)
                    context.state_lock.interrupt(order.message)
                    self._fence.raise_permanently(order.message)
                case Welcome():
                    context.recovery.handle_welcome(order)

    def _handle_checkpoint(self, order: Checkpoint) -> None:
        is_repeated = order.attempt in self._seen
        self._seen[order.attempt] = None
        while len(self._seen) > REMEMBERED_ATTEMPTS:
            del self._seen[next(iter(self._seen))]
        if not self._context.requests.handle_order(order) and not is_repeated:
            self._tasks.spawn(self._take(order))

    async def _take(self, order: Checkpoint) -> None:
        """Take or decline the ordered checkpoint. The authority always gets an answer, before the deadline."""
        context, attempt = self._context, self._attempts.attempt_for(order)
        await self._await_agent()
        if context.state.decline_error is not None:  # declined now, because the lock may be held for a long time
            await self._attempts.decline(attempt, context.state.decline_error)
            return
        async with context.state_lock.lock:
            try:
                await context.recovery.rebase()
            except SavepointError as error:
                await self._attempts.decline(attempt, error)
                return
            except Exception as cause:
                log.exception("cannot continue from the announced checkpoint (attempt=%s)", attempt.id)
                await self._attempts.decline(attempt, to_savepoint_error(cause, attempt))
                return
            if context.state.decline_error is not None:
                await self._attempts.decline(attempt, context.state.decline_error)
                return
            if context.state_lock.agent_is_connecting:
                attempt.interrupt(Unavailable(RECONNECTED))
            with contextlib.suppress(SavepointError):
                await self._attempts.take(attempt, context.sessions.live)

    async def _await_agent(self) -> None:
        """Give an agent with the SDK time to connect again: a restarted sidecar may receive an order before that.

        An agent without files cannot be captured in any other way, and gets more time for its first start.
        """
        context, monotonic = self._context, self._context.clock.monotonic
        has_roots = bool(context.config.roots)
        deadline = monotonic() + (RECONNECT_SECONDS if has_roots else FIRST_CONNECT_SECONDS)
        is_expected = context.checkpointer.has_sdk or not has_roots
        while is_expected and context.sessions.live is None and context.state.decline_error is None:
            if monotonic() >= deadline:
                return
            await asyncio.sleep(POLL_SECONDS)
