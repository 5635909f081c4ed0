"""The control port: who may connect, which of two connections of one pod counts, and how leadership begins and ends.

It knows no message but hello; the roles are ``restore_session`` and ``sidecar_session``.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime

from aiohttp import web
from savepoint.contract.control_protocol import MESSAGE_MAX_BYTES, PROTOCOL_VERSION, Hello, Refused
from savepoint.contract.names import CONTROL_PORT
from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.control.connection import CloseCode, Closing, Connection
from savepoint_operator.control.liveness import PodLiveness
from savepoint_operator.control.rate_limit import RateLimits
from savepoint_operator.control.registry import Registry
from savepoint_operator.control.restore_session import RestoreSession
from savepoint_operator.control.sidecar_session import SidecarSession
from savepoint_operator.control.tokens import Tokens
from savepoint_operator.control.unauthenticated import (
    HANDSHAKE_SECONDS,
    STRANGER_SECONDS,
    STRANGERS_MOST,
    UnauthenticatedConnections,
)
from savepoint_operator.lineage.service import LineageService
from savepoint_operator.model.ports import Orders, PodResolver, Recorder, Stores, TokenReviewer
from savepoint_operator.model.views import AgentRef, PodIdentity, Refusal

PATH = "/v1/control"
HELLO_SECONDS = 10.0
PING_SECONDS = 10.0
CLOSE_SECONDS = 2.0
DRAIN_POLL_SECONDS = 0.05
LINGER_SECONDS = 1.5
"""Pods that are evicted together with the operator are told so within this time."""

log = logging.getLogger(__name__)


class ControlServer:
    """The control side as a whole. One per process; everything runs on one event loop."""

    def __init__(
        self,
        *,
        reviewer: TokenReviewer,
        directory: PodResolver,
        stores: Stores,
        recorder: Recorder,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        poll_seconds: float = 1.0,
        answer_seconds: float = 20.0,
        strangers_most: int = STRANGERS_MOST,
        stranger_seconds: float = STRANGER_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        """``sleep`` waits out deadlines by ``monotonic``; ``poll_seconds``: how often a pod that waits is looked at;
        ``answer_seconds``: after how long a store that says nothing counts as one that cannot be reached."""
        self._directory, self._recorder = directory, recorder
        self._now, self._monotonic, self._poll_seconds = now, monotonic, poll_seconds
        self._tokens = Tokens(reviewer, monotonic)
        self._presence = PodLiveness(monotonic)
        self._paces = RateLimits(monotonic)
        self._lineage = LineageService(
            stores,
            directory,
            recorder,
            self._presence,
            now=now,
            monotonic=monotonic,
            random_bytes=random_bytes,
            answer_seconds=answer_seconds,
        )
        self._registry = Registry(self._lineage, recorder, monotonic, sleep)
        self._connections: dict[tuple[str, str], Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._leading = False
        self._runner: web.AppRunner | None = None
        self._strangers_most, self._stranger_seconds = strangers_most, stranger_seconds
        self._linger_seconds = linger_seconds
        self._strangers: UnauthenticatedConnections | None = None
        self._listener: asyncio.Server | None = None

    @property
    def orders(self) -> Orders:
        """What reconcile gives its orders to."""
        return self._registry

    async def start(self, tls: ssl.SSLContext | None, host: str = "0.0.0.0", port: int = CONTROL_PORT) -> int:  # noqa: S104
        """Open the port; to be called once leadership is held. The port that was opened (for ``port`` 0)."""
        self._leading = True
        self._presence.lead()
        application = web.Application()
        application.router.add_get(PATH, self._upgrade)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_SECONDS)
        await self._runner.setup()
        assert self._runner.server is not None
        self._strangers = UnauthenticatedConnections(
            self._runner.server, seconds=self._stranger_seconds, most=self._strangers_most
        )
        self._listener = await asyncio.get_running_loop().create_server(
            self._strangers, host, port, ssl=tls, ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None, backlog=1024
        )
        return int(self._listener.sockets[0].getsockname()[1])

    async def drain(self, seconds: float) -> None:
        """Leadership is about to end: order nothing new, and go on serving while an agent needs it, within the bound.

        A drain often evicts this process and its agents at one time: those that are told to end may say their last,
        and their successors, which start at once, are granted and restored here: the next leader comes later.
        """
        self._registry.stop_ordering()
        begun = self._monotonic()
        moving = self._registry.between()
        while (passed := self._monotonic() - begun) < seconds:
            going = await self._going()
            moving |= going  # others come and go at all times: the next leader serves them
            busy = going or moving & self._registry.between() or self._registry.urgent or self._lineage.busy
            if passed >= self._linger_seconds and not busy:
                return
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def _going(self) -> set[AgentRef]:
        """Agents whose pod's last word is still to come. A connection that is open after it says nothing more."""
        silent = [(key, pod) for key, pod in self._registry.pods() if not self._presence.contact(pod.uid).released]
        return {agent for agent, pod in silent if await self._directory.going(pod)}

    async def stop(self) -> None:
        """Close every connection and the port."""
        self._leading = False
        closing = [
            each.close(CloseCode.NOT_LEADING, "the operator stops; dial again") for each in self._connections.values()
        ]
        await asyncio.gather(*closing, *self._closing)
        if self._listener is not None and self._strangers is not None:
            self._listener.close()
            self._strangers.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._registry.close()
        await self._lineage.close()

    # -- a connection ---------------------------------------------------------------------------------------------

    async def _upgrade(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            heartbeat=PING_SECONDS, max_msg_size=MESSAGE_MAX_BYTES, compress=False, timeout=CLOSE_SECONDS
        )
        if not socket.can_prepare(request).ok:
            return web.Response(status=400, text="a WebSocket is expected\n")
        await socket.prepare(request)
        connection = Connection(socket, request)
        code, text = CloseCode.DONE, ""
        try:
            await self._serve(connection, request)
        except Closing as closing:
            code, text = closing.code, closing.text
        except Unavailable:
            pass  # the peer has gone in the middle of an answer
        await connection.close(code, text)
        return socket

    async def _serve(self, connection: Connection, request: web.Request) -> None:
        if not self._leading:
            raise Closing(CloseCode.NOT_LEADING, "this operator does not lead; dial again")
        try:
            pod = await self._tokens.pod(request.headers.get("Authorization"))
        except Unavailable as error:
            raise Closing(CloseCode.NOT_LEADING, "tokens cannot be reviewed now; dial again") from error
        if pod is None:
            raise Closing(CloseCode.TOKEN_REFUSED, "the token proves no pod")
        assert self._strangers is not None
        self._strangers.known(request.protocol)
        connection.pace = self._paces.of(pod.uid)
        hello = await connection.receive(HELLO_SECONDS)
        if hello is None:
            return
        if not isinstance(hello, Hello) or hello.role not in ("restore", "sidecar"):
            raise Closing(CloseCode.VERSION, "the first message is hello, of role restore or sidecar")
        if hello.protocol != PROTOCOL_VERSION:
            raise Closing(CloseCode.VERSION, f"this operator speaks protocol {PROTOCOL_VERSION}")
        if not self._leading:
            raise Closing(CloseCode.NOT_LEADING, "the operator stops; dial again")
        self._replace(connection, pod, hello.role)
        self._presence.opened(pod)
        try:
            await (self._restore(connection, pod) if hello.role == "restore" else self._sidecar(connection, pod, hello))
        finally:
            self._presence.closed(pod)
            if self._connections.get((pod.uid, hello.role)) is connection:
                del self._connections[(pod.uid, hello.role)]

    def _replace(self, connection: Connection, pod: PodIdentity, role: str) -> None:
        older = self._connections.get((pod.uid, role))
        self._connections[(pod.uid, role)] = connection
        if older is not None:
            log.info("a newer connection of pod %s/%s (%s) replaces the older one", pod.namespace, pod.name, role)
            task = asyncio.ensure_future(older.close(CloseCode.REPLACED, "a newer connection of this pod is open"))
            self._closing.add(task)  # not waited for: the older one may be half-open
            task.add_done_callback(self._closing.discard)

    async def _restore(self, connection: Connection, pod: PodIdentity) -> None:
        await RestoreSession(
            connection,
            pod,
            lineage=self._lineage,
            directory=self._directory,
            registry=self._registry,
            presence=self._presence,
            recorder=self._recorder,
            leading=lambda: self._leading,
            monotonic=self._monotonic,
            poll_seconds=self._poll_seconds,
        ).run()

    async def _sidecar(self, connection: Connection, pod: PodIdentity, hello: Hello) -> None:
        try:
            who = await self._directory.incarnation(pod)
        except SavepointError as error:
            raise Closing(CloseCode.NOT_LEADING, f"{error.reason}: dial again") from error
        if isinstance(who, Refusal):
            if who.retry:
                raise Closing(CloseCode.NOT_LEADING, f"{who.reason}: dial again")
            await connection.send(Refused(who.reason, who.message))
            raise Closing(CloseCode.NOT_AN_AGENT, who.reason)
        await SidecarSession(
            connection,
            who,
            hello,
            directory=self._directory,
            lineage=self._lineage,
            registry=self._registry,
            presence=self._presence,
            recorder=self._recorder,
            now=self._now,
            monotonic=self._monotonic,
        ).run()
