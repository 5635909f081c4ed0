"""The operator as an authority: a control connection that is redialed, and the state that must survive a reconnect.

After every reconnect it repeats what is unanswered: attempts in the hello, then results and offers. It takes no
checkpoint itself. Threads use only ``blobs`` and ``random_bytes``.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from savepoint.contract import control_protocol as wire
from savepoint.errors import Refused, Unavailable
from savepoint.repository.history.lineage import Pending, pending_bytes
from savepoint.storage.presigned import PresignedStore

from savepoint_sidecar.authority.authority import Blobs, Order
from savepoint_sidecar.authority.control_connection import Backoff, ControlConnection, Dialer
from savepoint_sidecar.authority.pending_offers import PendingOffers
from savepoint_sidecar.authority.reachability import Reachability
from savepoint_sidecar.authority.url_cache import UrlCache
from savepoint_sidecar.authority.url_refill import UrlRefill
from savepoint_sidecar.authority.url_requests import UrlRequests

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 15.0
"""Three heartbeats without an answer: the connection is treated as lost, even if the socket is still open."""
WELCOME_SECONDS: Final = 30.0
PENDING_URL_SECONDS: Final = 7 * 24 * 3600.0
PACK_NAME_BYTES: Final = 16
PACK_CHECK_SECONDS: Final = 600.0
"""Seconds between two checks of the parent's packs, which cost one small request for each pack."""
HEARTBEAT_DETAIL_MAX: Final = 1000


@dataclass(frozen=True)
class SidecarIdentity:
    """A sidecar's description of itself for the operator."""

    pod_uid: str
    node: str
    version: str


@dataclass(frozen=True)
class ConnectionClock:
    """The sources of time and randomness of a control connection."""

    monotonic: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    jitter: Callable[[], float]
    """A random number between 0 and 1."""


class ControlClient:
    """The ``Authority`` over a connection to the operator. The first ``welcome`` starts it; ``close`` ends it."""

    def __init__(
        self,
        dialer: Dialer,
        identity: SidecarIdentity,
        clock: ConnectionClock,
        reachability: Reachability | None = None,
    ) -> None:
        self._dialer, self._identity, self._clock, self._reachability = dialer, identity, clock, reachability
        self._backoff = Backoff(clock.jitter)
        self.heartbeat: Callable[[], tuple[bool, str]] = lambda: (False, "")
        """Returns whether an SDK is connected, and the agent's position."""
        self.attempts: Callable[[], tuple[tuple[str, str], ...]] = tuple
        """Returns the attempts in flight with their phases."""
        self._cache = UrlCache(clock.monotonic)
        self._connected = asyncio.Event()
        self._urls = UrlRequests(self._cache, self._connected, self._send, lambda: clock.random_bytes(16).hex())
        self._refill = UrlRefill(self._urls, clock.random_bytes)
        self._offers = PendingOffers(self._try_send)
        self._blobs: PresignedStore | None = None
        self._connection: ControlConnection | None = None
        self._first_welcome: asyncio.Future[wire.Welcome] | None = None
        self._welcome: wire.Welcome | None = None
        self._orders: asyncio.Queue[Order | None] = asyncio.Queue()
        self._unacknowledged_results: deque[wire.Result] = deque()
        self._release_acknowledged: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_message_at = clock.monotonic()
        self._closing = threading.Event()

    # -- Authority ----------------------------------------------------------------------------------------------------

    @property
    def blobs(self) -> Blobs:
        """The agent's repository, accessed by presigned URLs."""
        assert self._blobs is not None
        return self._blobs

    @property
    def connected(self) -> bool:
        """True while the operator can be reached."""
        return self._connected.is_set()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the operator, or the API server, last answered."""
        reached_at = self._reachability.reached_at if self._reachability is not None else 0.0
        return max(0.0, self._clock.monotonic() - max(self._last_message_at, reached_at))

    @property
    def pack_check_seconds(self) -> float:
        """The least time between two checks that the packs of earlier checkpoints are in the store."""
        return PACK_CHECK_SECONDS

    async def welcome(self) -> wire.Welcome:
        """Dial until the operator sends a welcome, and return it. Raise Refused if this sidecar may not work."""
        if self._welcome is not None:
            return self._welcome
        self._urls.bind()
        self._loop = asyncio.get_running_loop()
        self._first_welcome = self._loop.create_future()
        self._tasks = [
            asyncio.ensure_future(each)
            for each in (self._keep_connected(), self._refill.run(self._connected_epoch), self._offers.run_retries())
        ]
        if self._reachability is not None:
            self._tasks.append(asyncio.ensure_future(self._reachability.watch(lambda: not self.connected)))
        return await asyncio.shield(self._first_welcome)

    async def orders(self) -> AsyncIterator[Order]:
        """Iterate over the operator's orders until the client is closed."""
        while (order := await self._orders.get()) is not None:
            yield order

    def random_bytes(self, count: int) -> bytes:
        """Return random bytes. A pack's name comes from the reserve, if possible, because its URL is already signed."""
        if count == PACK_NAME_BYTES:
            name = self._cache.take_reserved()
            if self._loop is not None and not self._closing.is_set():
                self._loop.call_soon_threadsafe(self._refill.request)
            if name is not None:
                return bytes.fromhex(name.partition("-")[2])
        return self._clock.random_bytes(count)

    async def prepare_reads(self, keys: tuple[str, ...]) -> None:
        """Request URLs for these objects, and renew them before they expire."""
        self._cache.expect(keys)
        self._refill.request()

    async def report_progress(self, progress: wire.Progress) -> None:
        """Send the progress; drop it while the operator is not connected."""
        await self._try_send(progress)

    async def commit(self, offer: wire.Offer) -> wire.CheckpointRef:
        """Send the offer, again after each reconnect, until it is answered or the caller is cancelled."""
        return await self._offers.commit(offer)

    async def report_result(self, result: wire.Result) -> None:
        """Send the result now, or after the next reconnect."""
        self._unacknowledged_results.append(result)
        await self._try_send(result)

    async def request_checkpoint(self, request: wire.RequestCheckpoint) -> None:
        """Send the request once the operator is connected. The caller limits the wait."""
        await self._connected.wait()
        await self._send(request)

    async def leave_pending(self, attempt: str, trigger: str, completed: bool, manifest: bytes) -> None:
        """Store the deferred commit under the pending key, whose URL came with the welcome."""
        assert self._welcome is not None
        if not self._welcome.pending_key:
            raise Unavailable("the operator cannot be reached, and it gave no URL under which to leave a checkpoint")
        pending = Pending(attempt, self._welcome.epoch, self._identity.pod_uid, trigger, completed, manifest)
        content, key = pending_bytes(pending), self._welcome.pending_key
        await asyncio.to_thread(lambda: self.blobs.put_new(key, content))

    def stop_waiting(self) -> None:
        """Fail every wait for the answer to an offer and, in threads, for a URL or the store."""
        self._offers.fail_all("the operator did not answer the offer in the time that was left")
        self._urls.stop_waiting()
        if self._blobs is not None:
            self._blobs.interrupt()

    def retry_quickly(self) -> None:
        """Dial at once, and keep the pauses between further dials short."""
        self._backoff.retry_quickly()

    async def report_release(self, released: wire.Released) -> None:
        """Report the release, and wait for its acknowledgement."""
        self._release_acknowledged = asyncio.get_running_loop().create_future()
        await self._connected.wait()
        await self._try_send(released)
        await self._release_acknowledged

    async def close(self) -> None:
        """Stop dialing, close the connection and fail everything that waits."""
        self._closing.set()
        self._urls.close()
        self._orders.put_nowait(None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()
        self._offers.fail_all("this sidecar is stopping")
        if self._blobs is not None:
            self._blobs.close()

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        while True:
            try:
                connection = await self._dialer.dial()
            except Unavailable as error:
                log.info("%s; dialing again", error)
                await self._backoff.pause()
                continue
            heartbeats: asyncio.Task[None] | None = None
            try:
                await self._handshake(connection)
                heartbeats = asyncio.ensure_future(self._send_heartbeats(connection))
                while True:
                    self._handle(await connection.receive(SILENT_SECONDS))
            except Refused as error:
                self._handle_refusal(error)
            except Unavailable as error:
                log.info("%s; dialing again", error)
            finally:
                self._handle_disconnect()
                if heartbeats is not None:
                    heartbeats.cancel()
                await connection.close()
            await self._backoff.pause()

    async def _handshake(self, connection: ControlConnection) -> None:
        await connection.send(self._hello())
        answer = await connection.receive(WELCOME_SECONDS)
        if isinstance(answer, wire.Stop | wire.Refused):
            raise Refused(answer.message, answer.reason)
        if not isinstance(answer, wire.Welcome):
            raise Unavailable(f"the operator answered hello with {type(answer).__name__}")
        self._backoff.reset()
        self._last_message_at = self._clock.monotonic()
        if answer.pending_key:
            self._cache.add_put(answer.pending_key, answer.pending_url, PENDING_URL_SECONDS)
        is_reconnect = self._welcome is not None
        if self._blobs is None:
            self._blobs = PresignedStore(self._urls, ca_pem=answer.store_ca or None)
        self._welcome, self._connection = answer, connection
        self._connected.set()
        self._refill.request()
        if is_reconnect:
            self._orders.put_nowait(answer)
        elif self._first_welcome is not None and not self._first_welcome.done():
            self._first_welcome.set_result(answer)
        for result in list(self._unacknowledged_results):
            await connection.send(result)
        for offer in self._offers.offers():
            await connection.send(offer)

    def _hello(self) -> wire.Hello:
        attempts = tuple(wire.AttemptState(attempt, phase) for attempt, phase in self.attempts())
        epoch = self._welcome.epoch if self._welcome is not None else 0
        identity = self._identity
        return wire.Hello("sidecar", wire.PROTOCOL_VERSION, identity.version, identity.node, epoch, attempts)

    async def _send_heartbeats(self, connection: ControlConnection) -> None:
        while True:
            session, detail = self.heartbeat()
            try:
                await connection.send(wire.Heartbeat(session, detail[:HEARTBEAT_DETAIL_MAX]))
            except Unavailable:
                return  # the receiving loop meets the same error and redials
            await asyncio.sleep(wire.HEARTBEAT_SECONDS)

    def _handle(self, message: wire.Message) -> None:
        self._last_message_at = self._clock.monotonic()
        match message:
            case wire.Ack(of="result") if self._unacknowledged_results:
                self._unacknowledged_results.popleft()
            case wire.Ack(of="released") if self._release_acknowledged is not None:
                if not self._release_acknowledged.done():
                    self._release_acknowledged.set_result(None)
            case wire.Urls():
                self._urls.handle_urls(message)
            case wire.Committed():
                if not self._offers.handle_committed(message) and self._welcome is not None:
                    self._orders.put_nowait(replace(self._welcome, parent=message.checkpoint))
            case wire.Refused(attempt=attempt) if attempt in self._offers:
                self._offers.handle_refusal(message)
            case wire.Refused(request=request) if self._urls.is_open(request):
                self._urls.handle_refusal(request, Refused(message.message, message.reason))
            case wire.Checkpoint() | wire.Stop() | wire.Refused():
                self._orders.put_nowait(message)
            case _:
                pass  # a message of a newer protocol, or a late answer

    def _handle_refusal(self, error: Refused) -> None:
        """Report that this incarnation may not work: to the caller of ``welcome``, or later as an order to stop."""
        if self._first_welcome is not None and not self._first_welcome.done():
            self._first_welcome.set_exception(error)
        else:
            self._orders.put_nowait(wire.Stop(error.code, str(error)))

    def _handle_disconnect(self) -> None:
        self._connection = None
        self._connected.clear()
        self._urls.fail_open_requests()

    def _connected_epoch(self) -> int | None:
        return self._welcome.epoch if self._welcome is not None and self.connected else None

    async def _send(self, message: wire.FromPod) -> None:
        connection = self._connection
        if connection is None:
            raise Unavailable("the operator cannot be reached now")
        await connection.send(message)

    async def _try_send(self, message: wire.FromPod) -> None:
        with suppress(Unavailable):
            await self._send(message)
