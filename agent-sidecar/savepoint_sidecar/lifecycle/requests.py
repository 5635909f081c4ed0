"""Checkpoints requested on this side of the control channel: by the agent, by a shutdown, by the end of the run.

It matches requests with the orders or refusals that answer them. It takes no checkpoint.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import Checkpoint, Refused, RequestCheckpoint
from savepoint.contract.vocabulary import CheckpointOutcome, Reason
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.agent_api.process_session import ProcessSession
from savepoint_sidecar.authority.authority import Authority

ORDER_SECONDS: Final = 5.0
"""Seconds that a final checkpoint waits for the authority's order before it proceeds without one."""
AGENT_REQUEST_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 0.1


class CheckpointRequests:
    """The requests that have not been answered yet."""

    def __init__(self, authority: Authority, random_id: Callable[[], str]) -> None:
        self._authority, self._random_id = authority, random_id
        self._own: dict[str, asyncio.Future[Checkpoint]] = {}
        self._from_agent: dict[str, tuple[ProcessSession, RequestCheckpoint]] = {}

    async def request_order(self, trigger: str, seconds: float) -> Checkpoint:
        """Request a checkpoint and wait for its order, for at most a quarter of ``seconds``.

        Raise Refused, Unavailable or TimeoutError if there is none.
        """
        request = self._random_id()
        future: asyncio.Future[Checkpoint] = asyncio.get_running_loop().create_future()
        self._own[request] = future
        try:
            async with asyncio.timeout(min(ORDER_SECONDS, seconds / 4)):
                await self._authority.request_checkpoint(RequestCheckpoint(request, trigger))
                return await future
        finally:
            del self._own[request]

    def handle_order(self, order: Checkpoint) -> bool:
        """Handle an order. Return True if a caller of ``request_order`` receives it and carries it out."""
        self._from_agent.pop(order.request, None)
        future = self._own.get(order.request)
        if future is None or future.done():
            return False
        future.set_result(order)
        return True

    def handle_refusal(self, refusal: Refused) -> tuple[ProcessSession, RequestCheckpoint] | None:
        """Handle a refusal. Return the agent's request if it may be repeated after the attempt in flight."""
        future = self._own.get(refusal.request)
        if future is not None and not future.done():
            future.set_exception(RefusedError(refusal.message, refusal.reason))
            return None
        from_agent = self._from_agent.get(refusal.request)
        if from_agent is None:
            return None
        if refusal.reason == Reason.ATTEMPT_IN_FLIGHT:
            return from_agent
        self._fail(*from_agent, refusal.reason, refusal.message)
        return None

    async def forward(
        self, session: ProcessSession, request: RequestCheckpoint, after: asyncio.Lock | None = None
    ) -> None:
        """Forward the agent's request, once ``after`` is free. Wait out a short absence of the authority."""
        self._from_agent[request.request] = (session, request)
        try:
            if after is not None:
                async with after:
                    pass
                await asyncio.sleep(RETRY_SECONDS)
            async with asyncio.timeout(AGENT_REQUEST_SECONDS):
                await self._authority.request_checkpoint(request)
        except (SavepointError, TimeoutError) as error:
            reason = error.code if isinstance(error, SavepointError) else Unavailable.reason
            message = str(error) or "the operator cannot be reached; the agent continues and may request it again"
            self._fail(session, request, reason, message)

    def _fail(self, session: ProcessSession, request: RequestCheckpoint, reason: str, message: str) -> None:
        self._from_agent.pop(request.request, None)
        session.send(wire.Result("", CheckpointOutcome.FAILED, request.request, reason=reason, message=message))
