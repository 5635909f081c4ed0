"""The init container's end of the control channel: it asks, waits, is granted, fetches URLs, reports how it ended.

It restores nothing itself. Threads reach it only through ``urls``.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from savepoint.contract import control_protocol as wire
from savepoint.errors import Refused, Unavailable

from savepoint_sidecar.authority.channel import Backoff, Channel, Dialer
from savepoint_sidecar.authority.url_book import UrlBook
from savepoint_sidecar.authority.url_requests import UrlRequests

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 3600.0
ACK_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 1.0
"""Between two dials: an agent waits for this container."""


class RestoreClient:
    """Started by ``grant``; closed once."""

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
        self._channel: Channel | None = None
        self._open, self._connected = asyncio.Event(), asyncio.Event()
        """Hello was said; an epoch is granted on this connection."""
        self.urls = UrlRequests(UrlBook(monotonic), self._connected, self._send, random_id)
        """For the store from which the checkpoint is read."""
        self._granted: asyncio.Future[wire.Welcome] | None = None
        self._heard: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.waits_for = wire.Wait("Unavailable", "the operator has not answered yet")
        """What the operator last said that it waits for."""

    async def grant(self) -> wire.Welcome:
        """Ask until an epoch is granted; the caller bounds it. Refused when waiting would not help."""
        self.urls.bind()
        self._granted = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._keep_connected())
        return await asyncio.shield(self._granted)

    def expect(self, keys: tuple[str, ...]) -> None:
        """These objects will be read: their URLs are asked for together."""
        self.urls.book.expect(keys)

    async def progress(self, done: int, total: int) -> None:
        """How far the restore is."""
        percent = min(99, done * 100 // total) if total else 0
        await self._tell(wire.Progress("", "Restoring", percent, done, total))

    async def held_up(self, reason: str, message: str) -> None:
        """Why the restore does not go on now, until it makes progress. May be told again."""
        await self._tell(wire.Progress("", "Fetching", reason=reason, message=message))

    async def outcome(self, outcome: wire.Outcome) -> None:
        """Tell how it ended, and wait a moment for the answer."""
        self._heard = asyncio.get_running_loop().create_future()
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(ACK_SECONDS):
                await self._open.wait()
                await self._send(outcome)
                await self._heard

    async def close(self) -> None:
        """Hang up."""
        self.urls.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def store_not_reached(self) -> None:
        """It may have moved: new URLs are asked for. Without an operator the old ones are better than none."""
        if self._connected.is_set():
            self.urls.book.forget_reads()

    async def _tell(self, progress: wire.Progress) -> None:
        """Say it where an epoch is granted; after a reconnect nothing else is heard before that."""
        if self._connected.is_set():
            with suppress(Unavailable):
                await self._send(progress)

    async def _send(self, message: wire.FromPod) -> None:
        channel = self._channel
        if channel is None:
            raise Unavailable("the operator cannot be reached now")
        await channel.send(message)

    async def _keep_connected(self) -> None:
        while True:
            try:
                channel = await self._dialer.dial()
            except Unavailable as error:
                self._waits("Unavailable", str(error))
                await self._backoff.pause()
                continue
            try:
                await channel.send(wire.Hello("restore", wire.PROTOCOL_VERSION, self._version, self._node))
                self._channel = channel
                self._open.set()
                while True:
                    self._handle(await channel.receive(SILENT_SECONDS))
            except Refused as error:
                self._refuse(error)
            except Unavailable as error:
                log.info("%s; dialling again", error)
            finally:
                self._channel = None
                self._open.clear()
                self._connected.clear()
                self.urls.lost()
                await channel.close()
            await self._backoff.pause()

    def _handle(self, message: wire.Message) -> None:
        self._backoff.reset()
        match message:
            case wire.Grant():
                self._connected.set()
                if self._granted is not None and not self._granted.done():
                    self._granted.set_result(message.welcome)
            case wire.Wait():
                self._waits(message.reason, message.message)
            case wire.Urls():
                self.urls.answered(message)
            case wire.Refused() if self.urls.waits_for(message.request):
                self.urls.refused(message.request, Refused(message.message, message.reason))
            case wire.Refused() | wire.Stop():
                self._refuse(Refused(message.message, message.reason))
            case wire.Ack(of="outcome") if self._heard is not None and not self._heard.done():
                self._heard.set_result(None)
            case _:
                pass  # a message of a newer protocol

    def _waits(self, reason: str, message: str) -> None:
        if (reason, message) != (self.waits_for.reason, self.waits_for.message):
            log.warning("waiting: %s: %s", reason, message)
        self.waits_for = wire.Wait(reason, message)

    def _refuse(self, error: Refused) -> None:
        if self._granted is not None and not self._granted.done():
            self._granted.set_exception(error)
        else:
            log.error("the operator refuses this pod now: %s", error)
