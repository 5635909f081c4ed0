"""The operator as an authority: one control connection that is dialled again, and what must outlive it.

What is unanswered is said again after every reconnect: attempts in the hello, offers and results as they were. It takes
no checkpoint itself. Threads reach it only through ``blobs`` and ``random_bytes``.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from savepoint.contract import control_protocol as wire
from savepoint.errors import IntegrityError, Refused, SavepointError, StoreUnavailable, Superseded, Unavailable
from savepoint.repository.history.lineage import Pending, pending_bytes
from savepoint.storage.presigned import PresignedStore

from savepoint_sidecar.authority.authority import Blobs, Order
from savepoint_sidecar.authority.channel import Backoff, Channel, Dialer
from savepoint_sidecar.authority.reachability import Reachability
from savepoint_sidecar.authority.url_book import UrlBook
from savepoint_sidecar.authority.url_requests import UrlRequests

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 15.0
"""Three heartbeats without an answer: the connection is dead, whatever the socket says."""
WELCOME_SECONDS: Final = 30.0
PENDING_SECONDS: Final = 7 * 24 * 3600.0
REFILL_SECONDS: Final = 30.0
OFFER_AGAIN_SECONDS: Final = 2.0

_OFFER_AGAIN: Final = frozenset({StoreUnavailable.reason, Unavailable.reason})
_ERRORS: Final[dict[str, type[SavepointError]]] = {each.reason: each for each in (Superseded, IntegrityError)}


class ControlClient:
    """Started by ``welcome``; closed once."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        pod_uid: str,
        node: str,
        version: str,
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        jitter: Callable[[], float],
        reach: Reachability | None = None,
    ) -> None:
        self._dialer, self._pod_uid, self._node, self._version = dialer, pod_uid, node, version
        self._monotonic, self._random_bytes, self._reach = monotonic, random_bytes, reach
        self._backoff = Backoff(jitter)
        self.heartbeat: Callable[[], tuple[bool, str]] = lambda: (False, "")
        self.attempts: Callable[[], tuple[tuple[str, str], ...]] = tuple
        self._book = UrlBook(monotonic)
        self._connected = asyncio.Event()
        self._urls = UrlRequests(self._book, self._connected, self._send, lambda: random_bytes(16).hex())
        self._blobs: PresignedStore | None = None
        self._channel: Channel | None = None
        self._first: asyncio.Future[wire.Welcome] | None = None
        self._welcome: wire.Welcome | None = None
        self._orders: asyncio.Queue[Order | None] = asyncio.Queue()
        self._offers: dict[str, tuple[wire.Offer, asyncio.Future[wire.CheckpointRef]]] = {}
        self._results: deque[wire.Result] = deque()
        self._again: asyncio.Queue[str] = asyncio.Queue()
        self._released: asyncio.Future[None] | None = None
        self._refill = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard_at = monotonic()
        self._closing = threading.Event()

    # -- the protocol of Authority ----------------------------------------------------------------------------------

    @property
    def blobs(self) -> Blobs:
        """The agent's repository through presigned URLs."""
        assert self._blobs is not None
        return self._blobs

    @property
    def connected(self) -> bool:
        """Whether the operator can be asked now."""
        return self._connected.is_set()

    @property
    def silent_seconds(self) -> float:
        """Since the operator, or the API server, was heard."""
        heard = max(self._heard_at, self._reach.reached_at if self._reach is not None else 0.0)
        return max(0.0, self._monotonic() - heard)

    async def welcome(self) -> wire.Welcome:
        """Dial until the operator says who we are. Refused when it says that we may not work."""
        if self._welcome is not None:
            return self._welcome
        self._urls.bind()
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.create_future()
        self._tasks = [
            asyncio.ensure_future(each) for each in (self._keep_connected(), self._keep_filled(), self._offer_again())
        ]
        if self._reach is not None:
            self._tasks.append(asyncio.ensure_future(self._reach.watch(lambda: not self.connected)))
        return await asyncio.shield(self._first)

    async def orders(self) -> AsyncIterator[Order]:
        """What the operator says by itself."""
        while (order := await self._orders.get()) is not None:
            yield order

    def random_bytes(self, count: int) -> bytes:
        """Random bytes; a pack's name comes from the reserve, so that its URL is at hand."""
        if count == 16:
            name = self._book.take_reserved()
            if self._loop is not None and not self._closing.is_set():
                self._loop.call_soon_threadsafe(self._refill.set)
            if name is not None:
                return bytes.fromhex(name.partition("-")[2])
        return self._random_bytes(count)

    async def prepare_reads(self, keys: tuple[str, ...]) -> None:
        """Have URLs for these objects, and keep them fresh."""
        self._book.expect(keys)
        self._refill.set()

    async def progress(self, progress: wire.Progress) -> None:
        """Told if anyone listens."""
        await self._try_send(progress)

    async def commit(self, offer: wire.Offer) -> wire.CheckpointRef:
        """Offer, again after each reconnect, until it is answered or the caller gives up."""
        future: asyncio.Future[wire.CheckpointRef] = asyncio.get_running_loop().create_future()
        self._offers[offer.attempt] = (offer, future)
        try:
            await self._try_send(offer)
            return await future
        finally:
            del self._offers[offer.attempt]

    async def result(self, result: wire.Result) -> None:
        """Told now or after the next reconnect."""
        self._results.append(result)
        await self._try_send(result)

    async def request_checkpoint(self, request: wire.RequestCheckpoint) -> None:
        """Ask, once there is somebody to ask; the caller bounds the wait."""
        await self._connected.wait()
        await self._send(request)

    async def leave_pending(self, attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
        """Put the deferred commit under the one key that we hold a URL for."""
        assert self._welcome is not None
        if not self._welcome.pending_key:
            raise Unavailable("the operator cannot be reached, and it gave no URL to leave a checkpoint for it")
        pending = Pending(attempt, self._welcome.epoch, self._pod_uid, trigger, completed, manifest)
        content, key = pending_bytes(pending), self._welcome.pending_key
        await asyncio.to_thread(lambda: self.blobs.put_new(key, content))

    def stop_waiting(self) -> None:
        """Whoever waits for the answer to an offer, or in a thread for a URL, is told that there is none."""
        for _, future in self._offers.values():
            if not future.done():
                future.set_exception(Unavailable("the operator has not answered, and nobody waits for it any longer"))
        self._urls.stop_waiting()

    def hurry(self) -> None:
        """Dial at once, and again after short pauses."""
        self._backoff.hurry()

    async def released(self, released: wire.Released) -> None:
        """Say it, and wait until it was heard."""
        self._released = asyncio.get_running_loop().create_future()
        await self._connected.wait()
        await self._try_send(released)
        await self._released

    async def close(self) -> None:
        """Stop dialling."""
        self._closing.set()
        self._urls.close()
        self._orders.put_nowait(None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
        for _, future in self._offers.values():
            if not future.done():
                future.set_exception(Unavailable("this sidecar ends"))
        if self._blobs is not None:
            self._blobs.close()

    async def _keep_filled(self) -> None:
        """Keep a reserve of pack URLs and fresh URLs of the last cut, so that neither needs the operator then."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFILL_SECONDS):
                    await self._refill.wait()
            self._refill.clear()
            if self._welcome is None or not self.connected:
                continue
            epoch = self._welcome.epoch
            names = [f"{epoch}-{self._random_bytes(16).hex()}" for _ in range(max(0, self._book.reserve_missing()))]
            try:
                if names:
                    await self._urls.fetch(tuple(f"packs/{name}" for name in names), ())
                    for name in names:
                        self._book.reserve(name)
                while reads := self._book.wanted_reads():
                    await self._urls.fetch((), tuple(reads))
                    if self._book.wanted_reads() == reads:
                        break
            except (Refused, Unavailable) as error:
                log.warning("no URLs: %s", error)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        while True:
            try:
                channel = await self._dialer.dial()
            except Unavailable as error:
                log.info("%s", error)
                await self._backoff.pause()
                continue
            beating: asyncio.Task[None] | None = None
            try:
                await self._greet(channel)
                beating = asyncio.ensure_future(self._beat(channel))
                while True:
                    self._handle(await channel.receive(SILENT_SECONDS))
            except Refused as error:
                self._refuse(error)
            except Unavailable as error:
                log.info("%s; dialling again", error)
            finally:
                self._lost()
                if beating is not None:
                    beating.cancel()
                await channel.close()
            await self._backoff.pause()

    async def _greet(self, channel: Channel) -> None:
        attempts = tuple(wire.AttemptState(attempt, stage) for attempt, stage in self.attempts())
        epoch = self._welcome.epoch if self._welcome is not None else 0
        await channel.send(wire.Hello("sidecar", wire.PROTOCOL_VERSION, self._version, self._node, epoch, attempts))
        answer = await channel.receive(WELCOME_SECONDS)
        if isinstance(answer, wire.Stop | wire.Refused):
            raise Refused(answer.message, answer.reason)
        if not isinstance(answer, wire.Welcome):
            raise Unavailable(f"the operator answered hello with {type(answer).__name__}")
        self._backoff.reset()
        self._heard_at = self._monotonic()
        if answer.pending_key:
            self._book.add_put(answer.pending_key, answer.pending_url, PENDING_SECONDS)
        again = self._welcome is not None
        if self._blobs is None:
            self._blobs = PresignedStore(self._urls, ca_pem=answer.store_ca or None)
        self._welcome, self._channel = answer, channel
        self._connected.set()
        self._refill.set()
        if again:
            self._orders.put_nowait(answer)
        elif self._first is not None and not self._first.done():
            self._first.set_result(answer)
        for result in list(self._results):
            await channel.send(result)
        for offer, _ in list(self._offers.values()):
            await channel.send(offer)

    async def _offer_again(self) -> None:
        """Offers that the operator could not commit for reasons of the store's: the same attempt commits once."""
        while True:
            waiting = self._offers.get(await self._again.get())
            if waiting is not None and not waiting[1].done():
                await self._try_send(waiting[0])

    async def _beat(self, channel: Channel) -> None:
        while True:
            session, detail = self.heartbeat()
            try:
                await channel.send(wire.Heartbeat(session, detail[:1000]))
            except Unavailable:
                return  # the reader sees it too
            await asyncio.sleep(wire.HEARTBEAT_SECONDS)

    def _handle(self, message: wire.Message) -> None:
        self._heard_at = self._monotonic()
        match message:
            case wire.Ack(of="result") if self._results:
                self._results.popleft()
            case wire.Ack(of="released") if self._released is not None and not self._released.done():
                self._released.set_result(None)
            case wire.Urls():
                self._urls.answered(message)
            case wire.Committed():
                self._committed(message)
            case wire.Refused(attempt=attempt) if attempt in self._offers:
                self._refuse_offer(message)
            case wire.Refused(request=request) if self._urls.waits_for(request):
                self._urls.refused(request, Refused(message.message, message.reason))
            case wire.Checkpoint() | wire.Stop() | wire.Refused():
                self._orders.put_nowait(message)
            case _:
                pass  # a message of a newer protocol, or an answer that nobody waits for any more

    def _committed(self, message: wire.Committed) -> None:
        waiting = self._offers.get(message.attempt)
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(message.checkpoint)
        elif self._welcome is not None:
            self._orders.put_nowait(replace(self._welcome, parent=message.checkpoint))

    def _refuse_offer(self, refused: wire.Refused) -> None:
        offer, future = self._offers[refused.attempt]
        if refused.reason in _OFFER_AGAIN:
            log.info("the commit of attempt %s must wait: %s: %s", offer.attempt, refused.reason, refused.message)
            asyncio.get_running_loop().call_later(OFFER_AGAIN_SECONDS, self._again.put_nowait, offer.attempt)
        elif not future.done():
            known = _ERRORS.get(refused.reason)
            future.set_exception(known(refused.message) if known else Refused(refused.message, refused.reason))

    def _refuse(self, error: Refused) -> None:
        """The operator says that this incarnation may not work."""
        if self._first is not None and not self._first.done():
            self._first.set_exception(error)
        else:
            self._orders.put_nowait(wire.Stop(error.code, str(error)))

    def _lost(self) -> None:
        self._channel = None
        self._connected.clear()
        self._urls.lost()

    async def _send(self, message: wire.FromPod) -> None:
        channel = self._channel
        if channel is None:
            raise Unavailable("the operator cannot be reached now")
        await channel.send(message)

    async def _try_send(self, message: wire.FromPod) -> None:
        with suppress(Unavailable):
            await self._send(message)
