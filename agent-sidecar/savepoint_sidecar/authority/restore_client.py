"""The init container's end of the control channel: request an epoch, fetch URLs, report progress and outcome.

It restores nothing itself. Threads use only ``urls``.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from savepoint.contract import control_protocol as wire
from savepoint.contract.vocabulary import Reason, RestorePhase
from savepoint.errors import Refused, Unavailable

from savepoint_sidecar.authority.control_connection import Backoff, ControlConnection, Dialer
from savepoint_sidecar.authority.url_cache import UrlCache
from savepoint_sidecar.authority.url_requests import UrlRequests

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 3600.0
ACK_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 1.0
"""The longest pause between two dials; short, because the agent cannot start before this container has finished."""


class RestoreClient:
    """Started by ``grant``, ended by ``close``."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        node: str,
        version: str,
        monotonic: Callable[[], float],
        random_id: Callable[[], str],
        jitter: Callable[[], float],
    ) -> None:
        self._dialer, self._node, self._version = dialer, node, version
        self._backoff = Backoff(jitter, LONGEST_PAUSE_SECONDS)
        self._connection: ControlConnection | None = None
        self._open = asyncio.Event()
        """Set once hello was sent on the current connection."""
        self._connected = asyncio.Event()
        """Set once an epoch was granted on the current connection."""
        self.urls = UrlRequests(UrlCache(monotonic), self._connected, self._send, random_id)
        """URLs for the store that holds the checkpoint."""
        self._granted: asyncio.Future[wire.Welcome] | None = None
        self._outcome_acknowledged: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.latest_wait = wire.Wait(Reason.UNAVAILABLE, "the operator has not answered yet")
        """The condition that, by the operator's latest message, delays the grant."""

    async def grant(self) -> wire.Welcome:
        """Request an epoch until it is granted. The caller limits the wait. Raise Refused if waiting would not help."""
        self.urls.bind()
        self._granted = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._keep_connected())
        return await asyncio.shield(self._granted)

    def expect_reads(self, keys: tuple[str, ...]) -> None:
        """Announce objects that will be read, so that their URLs are requested together."""
        self.urls.cache.expect(keys)

    async def report_progress(self, done: int, total: int) -> None:
        """Report the progress of the restore, in bytes."""
        percent = min(99, done * 100 // total) if total else 0
        await self._report(wire.Progress("", RestorePhase.RESTORING, percent, done, total))

    async def report_delay(self, reason: str, message: str) -> None:
        """Report why the restore makes no progress. May be repeated; the next progress report clears it."""
        await self._report(wire.Progress("", RestorePhase.FETCHING, reason=reason, message=message))

    async def report_outcome(self, outcome: wire.Outcome) -> None:
        """Report the outcome of the restore, and wait a moment for the acknowledgement."""
        self._outcome_acknowledged = asyncio.get_running_loop().create_future()
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(ACK_SECONDS):
                await self._open.wait()
                await self._send(outcome)
                await self._outcome_acknowledged

    async def close(self) -> None:
        """Close the connection."""
        self.urls.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def discard_read_urls(self) -> None:
        """Discard the read URLs, as the store may have moved. Keep them while no operator can sign new ones."""
        if self._connected.is_set():
            self.urls.cache.forget_reads()

    async def _report(self, progress: wire.Progress) -> None:
        """Send the report if an epoch is granted; before that, after a reconnect, the operator would not accept it."""
        if self._connected.is_set():
            with suppress(Unavailable):
                await self._send(progress)

    async def _send(self, message: wire.FromPod) -> None:
        connection = self._connection
        if connection is None:
            raise Unavailable("the operator cannot be reached now")
        await connection.send(message)

    async def _keep_connected(self) -> None:
        while True:
            try:
                connection = await self._dialer.dial()
            except Unavailable as error:
                self._set_wait(Reason.UNAVAILABLE, str(error))
                await self._backoff.pause()
                continue
            try:
                await connection.send(wire.Hello("restore", wire.PROTOCOL_VERSION, self._version, self._node))
                self._connection = connection
                self._open.set()
                while True:
                    self._handle(await connection.receive(SILENT_SECONDS))
            except Refused as error:
                self._handle_refusal(error)
            except Unavailable as error:
                log.info("%s; dialing again", error)
            finally:
                self._connection = None
                self._open.clear()
                self._connected.clear()
                self.urls.fail_open_requests()
                await connection.close()
            await self._backoff.pause()

    def _handle(self, message: wire.Message) -> None:
        self._backoff.reset()
        match message:
            case wire.Grant():
                self._connected.set()
                if self._granted is not None and not self._granted.done():
                    self._granted.set_result(message.welcome)
            case wire.Wait():
                self._set_wait(message.reason, message.message)
            case wire.Urls():
                self.urls.handle_urls(message)
            case wire.Refused() if self.urls.is_open(message.request):
                self.urls.handle_refusal(message.request, Refused(message.message, message.reason))
            case wire.Refused() | wire.Stop():
                self._handle_refusal(Refused(message.message, message.reason))
            case wire.Ack(of="outcome") if self._outcome_acknowledged is not None:
                if not self._outcome_acknowledged.done():
                    self._outcome_acknowledged.set_result(None)
            case _:
                pass  # a message of a newer protocol

    def _set_wait(self, reason: str, message: str) -> None:
        if (reason, message) != (self.latest_wait.reason, self.latest_wait.message):
            log.warning("waiting: %s: %s", reason, message)
        self.latest_wait = wire.Wait(reason, message)

    def _handle_refusal(self, error: Refused) -> None:
        if self._granted is not None and not self._granted.done():
            self._granted.set_exception(error)
        else:
            log.error("the operator now refuses this pod: %s: %s", error.code, error)
