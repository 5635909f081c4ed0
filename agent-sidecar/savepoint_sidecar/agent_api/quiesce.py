"""One cooperative pause of an agent: ask, wait for its flush, let it go on. And how it can fail.

Values and futures on the event loop; it knows no HTTP (``socket_server``) and captures nothing (``checkpoint``).
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from savepoint.contract.agent_protocol import Failed, Flush
from savepoint.errors import QuiesceTimeout, Refused, SavepointError, StageFull, StateUnstable, Unavailable

TIMEOUT_MARGIN_SECONDS: Final = 1.0
"""The agent itself says why it cannot flush shortly before the timeout; this much later we say it without it."""

_BY_REASON: Final[dict[str, type[SavepointError]]] = {
    each.reason: each for each in (QuiesceTimeout, StageFull, StateUnstable, Unavailable)
}


@dataclass
class Transaction:
    """One order to flush, from the moment it is sent until its result is known."""

    id: str
    hold_seconds: float
    request: str | None = None
    """The agent's own request that this answers."""
    flushed: "asyncio.Future[Flush]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    resumed: "asyncio.Future[bool]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """True: the agent may go on, all is taken. False: the transaction is over without it."""
    flushed_at: float | None = None
    """By the loop's clock."""
    pause_milliseconds: int | None = None
    """As the agent saw it."""

    async def flush(self, timeout_seconds: float, at: str = "") -> Flush:
        """The agent's flush. QuiesceTimeout if none comes in time; whatever the agent says if it cannot."""
        try:
            async with asyncio.timeout(timeout_seconds + TIMEOUT_MARGIN_SECONDS):
                return await asyncio.shield(self.flushed)
        except TimeoutError as error:
            where = f" (last seen at {at})" if at else ""
            raise QuiesceTimeout(
                f"Agent did not reach a safe point within {timeout_seconds:g}s{where}; it was resumed. "
                "Add agent.safe_point(), or raise spec.quiesce.timeoutSeconds in the policy."
            ) from error

    def arrived(self, flush: Flush) -> bool:
        """The agent has flushed; False if nobody waits for it any more."""
        if self.flushed.done() or self.resumed.done():
            return False
        self.flushed_at = asyncio.get_running_loop().time()
        self.flushed.set_result(flush)
        return True

    def hold_ends(self) -> float:
        """When, by the loop's clock, the agent goes on by itself."""
        assert self.flushed_at is not None
        return self.flushed_at + self.hold_seconds

    def resume(self) -> bool:
        """Let the agent go on; False if it has gone on already, so that what was taken does not count."""
        if self.resumed.done():
            return self.resumed.result()
        late = self.flushed_at is not None and asyncio.get_running_loop().time() >= self.hold_ends()
        self.resumed.set_result(not late)
        return not late

    def fail(self, error: SavepointError) -> None:
        """End it: whoever waits for the flush gets the error, whoever has flushed goes on."""
        if not self.flushed.done():
            self.flushed.set_exception(error)
            self.flushed.exception()  # looked at: the waiter may be gone
        if not self.resumed.done():
            self.resumed.set_result(False)

    def failed(self, told: Failed) -> None:
        """The agent says that it cannot flush."""
        known = _BY_REASON.get(told.reason)
        self.fail(known(told.message) if known else Refused(told.message, told.reason))
