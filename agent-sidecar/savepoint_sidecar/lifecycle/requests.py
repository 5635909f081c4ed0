"""Checkpoints that are asked for from this side: by the agent, by its end, by the end of its run.

It pairs questions with the orders or refusals that answer them. It takes no checkpoint.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract.control_protocol import Checkpoint, Refused, RequestCheckpoint
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.agent_api.process_session import ProcessSession
from savepoint_sidecar.authority.authority import Authority

ASK_SECONDS: Final = 5.0
"""How long an end of the agent waits for the authority's order before it makes an attempt of its own."""
AGENT_ASK_SECONDS: Final = 30.0
AGAIN_SECONDS: Final = 0.1
IN_FLIGHT: Final = "AttemptInFlight"


class Requests:
    """What was asked and is not answered yet."""

    def __init__(self, authority: Authority, random_id: Callable[[], str]) -> None:
        self._authority, self._random_id = authority, random_id
        self._own: dict[str, asyncio.Future[Checkpoint]] = {}
        self._agents: dict[str, tuple[ProcessSession, RequestCheckpoint]] = {}

    async def order(self, trigger: str, seconds: float) -> Checkpoint:
        """Ask for an order and wait for it; Refused, Unavailable or TimeoutError if there is none."""
        request = self._random_id()
        future: asyncio.Future[Checkpoint] = asyncio.get_running_loop().create_future()
        self._own[request] = future
        try:
            async with asyncio.timeout(min(ASK_SECONDS, seconds / 4)):
                await self._authority.request_checkpoint(RequestCheckpoint(request, trigger))
                return await future
        finally:
            del self._own[request]

    def answered(self, order: Checkpoint) -> bool:
        """An order has come; True if somebody here waits for it and takes it."""
        self._agents.pop(order.request, None)
        future = self._own.get(order.request)
        if future is None or future.done():
            return False
        future.set_result(order)
        return True

    def refused(self, refused: Refused) -> tuple[ProcessSession, RequestCheckpoint] | None:
        """A refusal has come; the agent's request that may be asked again once the attempt in flight has ended."""
        future = self._own.get(refused.request)
        if future is not None and not future.done():
            future.set_exception(RefusedError(refused.message, refused.reason))
            return None
        asked = self._agents.get(refused.request)
        if asked is None:
            return None
        if refused.reason == IN_FLIGHT:
            return asked
        self._fail(*asked, refused.reason, refused.message)
        return None

    async def forward(self, session: ProcessSession, ask: RequestCheckpoint, after: asyncio.Lock | None = None) -> None:
        """Pass on what the agent asks for, once ``after`` is free; it waits out a short absence of the authority."""
        self._agents[ask.request] = (session, ask)
        try:
            if after is not None:
                async with after:
                    pass
                await asyncio.sleep(AGAIN_SECONDS)
            async with asyncio.timeout(AGENT_ASK_SECONDS):
                await self._authority.request_checkpoint(ask)
        except (SavepointError, TimeoutError) as error:
            reason = error.code if isinstance(error, SavepointError) else Unavailable.reason
            message = str(error) or "the operator cannot be reached; the agent runs on, and may ask again"
            self._fail(session, ask, reason, message)

    def _fail(self, session: ProcessSession, ask: RequestCheckpoint, reason: str, message: str) -> None:
        self._agents.pop(ask.request, None)
        session.send(wire.Result("", "Failed", ask.request, reason=reason, message=message))
