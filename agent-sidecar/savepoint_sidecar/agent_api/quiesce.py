"""One cooperative pause of an agent: order a flush, wait for it, resume the agent; and the ways this can fail.

Values and futures on the event loop. It knows no HTTP (``socket_server``) and captures nothing (``checkpoint``).
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from savepoint.contract.agent_protocol import Failed, Flush
from savepoint.errors import QuiesceTimeout, Refused, SavepointError, StageFull, StateUnstable, Unavailable

TIMEOUT_MARGIN_SECONDS: Final = 1.0
"""Added to the quiesce timeout: the SDK reports shortly before the timeout why it cannot flush, and knows more."""

_ERRORS_BY_REASON: Final[dict[str, type[SavepointError]]] = {
    each.reason: each for each in (QuiesceTimeout, StageFull, StateUnstable, Unavailable)
}


@dataclass
class Transaction:
    """One order to flush, from the moment it is sent until its result is known."""

    id: str
    hold_seconds: float
    request: str | None = None
    """Id of the agent's own checkpoint request that this transaction answers."""
    flushed: "asyncio.Future[Flush]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    resumed: "asyncio.Future[bool]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """True: everything is captured and the agent may continue. False: the transaction ended without that."""
    flushed_at: float | None = None
    """Time of the flush, on the event loop's clock."""
    error: SavepointError | None = None
    """The reason why the transaction failed: the answer to the agent's flush."""
    pause_milliseconds: int | None = None
    """The pause that the agent measured."""

    async def flush(self, timeout_seconds: float, last_step: str = "") -> Flush:
        """Return the agent's flush. Raise QuiesceTimeout if none arrives in time, or the error that the agent reports.

        ``last_step`` is the last known position of the agent, for the message.
        """
        try:
            async with asyncio.timeout(timeout_seconds + TIMEOUT_MARGIN_SECONDS):
                return await asyncio.shield(self.flushed)
        except TimeoutError as error:
            where = f" (last seen at {last_step})" if last_step else ""
            raise QuiesceTimeout(
                f"Agent did not reach a safe point within {timeout_seconds:g}s{where}; it was resumed. "
                "Add agent.safe_point(), or raise spec.quiesce.timeoutSeconds in the policy."
            ) from error

    def accept_flush(self, flush: Flush) -> bool:
        """Record the agent's flush. Return False if the transaction is already over."""
        if self.flushed.done() or self.resumed.done():
            return False
        self.flushed_at = asyncio.get_running_loop().time()
        self.flushed.set_result(flush)
        return True

    def hold_deadline(self) -> float:
        """Return the time, on the event loop's clock, at which the agent resumes by itself."""
        assert self.flushed_at is not None
        return self.flushed_at + self.hold_seconds

    def resume(self) -> bool:
        """Resume the agent. Return False if it has already resumed by itself, so that the capture is void."""
        if self.resumed.done():
            return self.resumed.result()
        too_late = self.flushed_at is not None and asyncio.get_running_loop().time() >= self.hold_deadline()
        if too_late and self.error is None:
            self.error = StateUnstable(
                "the capture took longer than the agent may be paused; raise spec.quiesce.holdSeconds in the policy"
            )
        self.resumed.set_result(not too_late)
        return not too_late

    def fail(self, error: SavepointError) -> None:
        """End the transaction: a waiter for the flush gets the error, and an agent that has flushed is resumed."""
        if self.error is None and not self.resumed.done():
            self.error = error
        if not self.flushed.done():
            self.flushed.set_exception(error)
            self.flushed.exception()  # marks it as retrieved: there may be no waiter left
        if not self.resumed.done():
            self.resumed.set_result(False)

    def agent_failed(self, failed: Failed) -> None:
        """End the transaction with the error that the agent reports."""
        error_class = _ERRORS_BY_REASON.get(failed.reason)
        self.fail(error_class(failed.message) if error_class else Refused(failed.message, failed.reason))
