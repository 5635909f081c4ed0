"""Offers of finished checkpoints that the operator has not answered yet.

Every open offer is sent again after a reconnect; the operator commits each attempt once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from savepoint.contract.control_protocol import CheckpointRef, Committed, Offer
from savepoint.contract.control_protocol import Refused as RefusedMessage
from savepoint.contract.vocabulary import Reason
from savepoint.errors import IntegrityError, Refused, SavepointError, Superseded, Unavailable

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0

_RETRIED_REASONS: Final = frozenset({Reason.STORE_UNAVAILABLE, Reason.UNAVAILABLE})
_ERRORS_BY_REASON: Final[dict[str, type[SavepointError]]] = {each.reason: each for each in (Superseded, IntegrityError)}


class PendingOffers:
    """Open offers by attempt, each with the future that its answer completes."""

    def __init__(self, send: Callable[[Offer], Awaitable[None]]) -> None:
        """``send`` drops the message silently while there is no connection."""
        self._send = send
        self._open: dict[str, tuple[Offer, asyncio.Future[CheckpointRef]]] = {}
        self._due: asyncio.Queue[str] = asyncio.Queue()

    def __contains__(self, attempt: str) -> bool:
        return attempt in self._open

    def offers(self) -> tuple[Offer, ...]:
        """Return all open offers, to be sent again after a reconnect."""
        return tuple(offer for offer, _ in self._open.values())

    async def commit(self, offer: Offer) -> CheckpointRef:
        """Send the offer and wait for its answer."""
        future: asyncio.Future[CheckpointRef] = asyncio.get_running_loop().create_future()
        self._open[offer.attempt] = (offer, future)
        try:
            await self._send(offer)
            return await future
        finally:
            del self._open[offer.attempt]

    def handle_committed(self, message: Committed) -> bool:
        """Complete the offer. Return False if no one waits for it."""
        waiting = self._open.get(message.attempt)
        if waiting is None or waiting[1].done():
            return False
        waiting[1].set_result(message.checkpoint)
        return True

    def handle_refusal(self, refusal: RefusedMessage) -> None:
        """Fail the offer, or schedule a retry if the fault is transient."""
        offer, future = self._open[refusal.attempt]
        if refusal.reason in _RETRIED_REASONS:
            log.info(
                "the operator cannot commit the checkpoint yet: %s: %s; retrying in %.0f s (attempt=%s)",
                refusal.reason, refusal.message, RETRY_SECONDS, offer.attempt,
            )  # fmt: skip
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._due.put_nowait, offer.attempt)
        elif not future.done():
            error_class = _ERRORS_BY_REASON.get(refusal.reason)
            future.set_exception(
                error_class(refusal.message) if error_class else Refused(refusal.message, refusal.reason)
            )

    async def run_retries(self) -> None:
        """Send offers again when their retry is due. Runs until it is cancelled."""
        while True:
            waiting = self._open.get(await self._due.get())
            if waiting is not None and not waiting[1].done():
                await self._send(waiting[0])

    def fail_all(self, message: str) -> None:
        """Fail every open offer with Unavailable."""
        for _, future in self._open.values():
            if not future.done():
                future.set_exception(Unavailable(message))
