"""The control port: who may connect, which of two connections of one pod counts, and how leadership begins and ends.

It knows no message but hello; the roles are ``restore_session`` and ``sidecar_session``.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web
from savepoint.contract.control_protocol import MESSAGE_MAX_BYTES, PROTOCOL_VERSION, Hello, Refused
from savepoint.contract.names import CONTROL_PORT
from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.control.connection import CloseCode, CloseConnection, Connection
from savepoint_operator.control.dependencies import ControlLimits, ControlPorts, SessionDependencies
from savepoint_operator.control.liveness import PodLiveness
from savepoint_operator.control.rate_limit import RateLimits
from savepoint_operator.control.registry import SessionRegistry
from savepoint_operator.control.restore_session import RestoreSession
from savepoint_operator.control.sidecar_session import SidecarSession
from savepoint_operator.control.tokens import Tokens
from savepoint_operator.control.unauthenticated import HANDSHAKE_SECONDS, UnauthenticatedConnections
from savepoint_operator.lineage.dependencies import LineagePorts
from savepoint_operator.lineage.service import LineageService
from savepoint_operator.model.clocks import Clocks
from savepoint_operator.model.ports import Orders
from savepoint_operator.model.views import AgentRef, PodIdentity, Refusal

PATH = "/v1/control"
HELLO_SECONDS = 10.0
PING_SECONDS = 10.0
CLOSE_SECONDS = 2.0
DRAIN_POLL_SECONDS = 0.05

log = logging.getLogger(__name__)


class ControlServer:
    """The control side as a whole. One per process; everything runs on one event loop."""

    def __init__(
        self,
        ports: ControlPorts,
        clocks: Clocks,
        *,
        random_bytes: Callable[[int], bytes],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        limits: ControlLimits | None = None,
    ) -> None:
        """Create the server; ``sleep`` waits for deadlines, which are in the seconds of ``clocks.monotonic``."""
        self._pod_resolver, self._monotonic = ports.pod_resolver, clocks.monotonic
        self._limits = limits or ControlLimits()
        self._tokens = Tokens(ports.reviewer, clocks.monotonic)
        self._liveness = PodLiveness(clocks.monotonic)
        self._rate_limits = RateLimits(clocks.monotonic)
        self._lineage = LineageService(
            LineagePorts(ports.stores, ports.pod_resolver, ports.recorder, self._liveness),
            clocks,
            random_bytes=random_bytes,
            answer_seconds=self._limits.answer_seconds,
        )
        self._registry = SessionRegistry(self._lineage, ports.recorder, clocks.monotonic, sleep)
        self._session_dependencies = SessionDependencies(
            pod_resolver=ports.pod_resolver,
            recorder=ports.recorder,
            lineage=self._lineage,
            registry=self._registry,
            liveness=self._liveness,
            clocks=clocks,
        )
        self._connections: dict[tuple[str, str], Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._leading = False
        self._runner: web.AppRunner | None = None
        self._unauthenticated: UnauthenticatedConnections | None = None
        self._listener: asyncio.Server | None = None

    @property
    def orders(self) -> Orders:
        """The port through which reconcile orders work."""
        return self._registry

    async def start(self, tls: ssl.SSLContext | None, host: str = "0.0.0.0", port: int = CONTROL_PORT) -> int:  # noqa: S104
        """Open the port and return its number (for ``port`` 0). Call it once leadership is held."""
        self._leading = True
        self._liveness.start_leading()
        application = web.Application()
        application.router.add_get(PATH, self._upgrade)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_SECONDS)
        await self._runner.setup()
        assert self._runner.server is not None
        self._unauthenticated = UnauthenticatedConnections(
            self._runner.server,
            seconds=self._limits.unauthenticated_seconds,
            limit=self._limits.max_unauthenticated,
        )
        self._listener = await asyncio.get_running_loop().create_server(
            self._unauthenticated,
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
            backlog=1024,
        )
        return int(self._listener.sockets[0].getsockname()[1])

    async def drain(self, seconds: float) -> None:
        """Prepare for the end of leadership: order nothing new, and keep serving while an agent needs it.

        A node drain often evicts this process together with agents. Agents that are terminating may finish, and their
        successors, which start at once, are granted and restored here, since the next leader comes later. Returns after
        ``seconds`` at the latest.
        """
        self._registry.stop_ordering()
        started = self._monotonic()
        moving = self._registry.in_handover()
        while (passed := self._monotonic() - started) < seconds:
            terminating = await self._terminating()
            moving |= terminating  # agents that start to move later are served by the next leader
            busy = (
                terminating
                or moving & self._registry.in_handover()
                or self._registry.has_urgent_work
                or self._lineage.busy
            )
            if passed >= self._limits.linger_seconds and not busy:
                return
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def _terminating(self) -> set[AgentRef]:
        """Return the agents whose pod is terminating and has not released its epoch; after that it sends no more."""
        unreleased = [
            (agent, pod)
            for agent, pod in self._registry.connected_pods()
            if not self._liveness.contact(pod.uid).released
        ]
        return {agent for agent, pod in unreleased if await self._pod_resolver.terminating(pod)}

    async def stop(self) -> None:
        """Close every connection and the port."""
        self._leading = False
        closing = [
            each.close(CloseCode.TRY_AGAIN_LATER, "the operator is stopping; reconnect")
            for each in self._connections.values()
        ]
        await asyncio.gather(*closing, *self._closing)
        if self._listener is not None and self._unauthenticated is not None:
            self._listener.close()
            self._unauthenticated.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._registry.close()
        await self._lineage.close()

    # -- connections ----------------------------------------------------------------------------------------------

    async def _upgrade(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            heartbeat=PING_SECONDS, max_msg_size=MESSAGE_MAX_BYTES, compress=False, timeout=CLOSE_SECONDS
        )
        if not socket.can_prepare(request).ok:
            return web.Response(status=400, text="expected a WebSocket upgrade\n")
        await socket.prepare(request)
        connection = Connection(socket, request)
        code, text = CloseCode.DONE, ""
        try:
            await self._serve(connection, request)
        except CloseConnection as closing:
            code, text = closing.code, closing.text
        except Unavailable:
            pass  # the peer disconnected while it was being answered
        await connection.close(code, text)
        return socket

    async def _serve(self, connection: Connection, request: web.Request) -> None:
        pod = await self._authenticate(connection, request)
        hello = await connection.receive(HELLO_SECONDS)
        if hello is None:
            return
        if not isinstance(hello, Hello) or hello.role not in ("restore", "sidecar"):
            raise CloseConnection(
                CloseCode.PROTOCOL_ERROR, "the first message must be hello, with role restore or sidecar"
            )
        if hello.protocol != PROTOCOL_VERSION:
            raise CloseConnection(CloseCode.PROTOCOL_ERROR, f"this operator speaks protocol {PROTOCOL_VERSION}")
        if not self._leading:
            raise CloseConnection(CloseCode.TRY_AGAIN_LATER, "the operator is stopping; reconnect")
        self._replace(connection, pod, hello.role)
        self._liveness.connection_opened(pod)
        try:
            await (self._restore(connection, pod) if hello.role == "restore" else self._sidecar(connection, pod, hello))
        finally:
            self._liveness.connection_closed(pod)
            if self._connections.get((pod.uid, hello.role)) is connection:
                del self._connections[(pod.uid, hello.role)]

    async def _authenticate(self, connection: Connection, request: web.Request) -> PodIdentity:
        """Return the pod that the request's token proves. Raises CloseConnection."""
        if not self._leading:
            raise CloseConnection(CloseCode.TRY_AGAIN_LATER, "this operator is not the leader; reconnect")
        try:
            pod = await self._tokens.pod(request.headers.get("Authorization"))
        except Unavailable as error:
            raise CloseConnection(CloseCode.TRY_AGAIN_LATER, "tokens cannot be reviewed now; reconnect") from error
        if pod is None:
            raise CloseConnection(CloseCode.TOKEN_REFUSED, "the token does not identify a pod")
        assert self._unauthenticated is not None
        self._unauthenticated.authenticated(request.protocol)
        connection.rate_limit = self._rate_limits.of(pod.uid)
        return pod

    def _replace(self, connection: Connection, pod: PodIdentity, role: str) -> None:
        older = self._connections.get((pod.uid, role))
        self._connections[(pod.uid, role)] = connection
        if older is not None:
            name = f"{pod.namespace}/{pod.name}"
            log.info("pod %s opened a newer %s connection; closing the older one", name, role)
            task = asyncio.ensure_future(older.close(CloseCode.REPLACED, "a newer connection of this pod is open"))
            self._closing.add(task)  # not awaited: the older one may be half-open
            task.add_done_callback(self._closing.discard)

    async def _restore(self, connection: Connection, pod: PodIdentity) -> None:
        await RestoreSession(
            connection,
            pod,
            self._session_dependencies,
            leading=lambda: self._leading,
            poll_seconds=self._limits.poll_seconds,
        ).run()

    async def _sidecar(self, connection: Connection, pod: PodIdentity, hello: Hello) -> None:
        try:
            found = await self._pod_resolver.incarnation(pod)
        except SavepointError as error:
            raise CloseConnection(CloseCode.TRY_AGAIN_LATER, f"{error.reason}: reconnect") from error
        if isinstance(found, Refusal):
            if found.retry:
                raise CloseConnection(CloseCode.TRY_AGAIN_LATER, f"{found.reason}: reconnect")
            await connection.send(Refused(found.reason, found.message))
            raise CloseConnection(CloseCode.NOT_AN_AGENT, found.reason)
        await SidecarSession(connection, found, hello, self._session_dependencies).run()
