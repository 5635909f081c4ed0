"""The server on the agent's Unix socket: docs/agent-protocol.md over HTTP. It parses, answers and keeps the stream.

It decides nothing: an ``AgentHost`` carries out the calls.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web
from savepoint.contract import agent_protocol as wire
from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.agent_api.process_session import STREAM_OPEN_SECONDS, ProcessSession, ProcessSessions

log = logging.getLogger(__name__)

_CREDENTIALS: Final = struct.Struct("3i")
"""The kernel's struct ucred: pid, uid and gid."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_STATUS: Final[dict[str, int]] = {Reason.SESSION_IN_USE: 409, Reason.QUIESCE_TIMEOUT: 409, Reason.STATE_UNSTABLE: 409}


class AgentHost(Protocol):
    """The receiver of the agent's calls."""

    async def connect(self, session: ProcessSession) -> wire.Connected:
        """Bring files and documents to one checkpoint and return the answer. A SavepointError refuses the session."""
        ...

    def request_checkpoint(self, session: ProcessSession, request: wire.CheckpointRequest) -> None:
        """Start a checkpoint that the agent requests; a result that names the request follows on the stream."""
        ...

    async def finish(self, session: ProcessSession, flush: wire.Flush) -> str:
        """Take the final checkpoint of the run, complete the run, and return the checkpoint's name."""
        ...

    def handle_disconnect(self, session: ProcessSession) -> None:
        """Handle the end of the agent's process."""
        ...

    def status(self) -> dict[str, Any]:
        """Return the body of ``GET /v1/status``."""
        ...


class SocketServer:
    """The server of one socket, until it is closed."""

    def __init__(
        self, path: Path, sessions: ProcessSessions, host: AgentHost, reword: Callable[[str], str] = str
    ) -> None:
        """``reword`` returns a message for the agent in the terms of where it runs."""
        self._path, self._sessions, self._host, self._reword = path, sessions, host, reword
        self._runner: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Any process in the pod may connect; the socket's folder is mounted only where it should be seen."""
        app = web.Application(
            client_max_size=wire.BODY_MAX_BYTES + 1024, middlewares=[self._reworded, _errors_as_problems]
        )
        app.add_routes(
            [
                web.post(wire.PATH_CONNECT, self._connect),
                web.get(wire.PATH_ORDERS, self._orders),
                web.post(wire.PATH_FLUSH, self._flush),
                web.post(wire.PATH_FAILED, self._failed),
                web.post(wire.PATH_RESUMED, self._resumed),
                web.post(wire.PATH_CHECKPOINT, self._checkpoint),
                web.post(wire.PATH_FINISH, self._finish),
                web.get(wire.PATH_STATUS, self._status),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await self._runner.setup()
        with suppress(FileNotFoundError):
            self._path.unlink()
        await web.UnixSite(self._runner, self._path).start()
        os.chmod(self._path, 0o666)  # noqa: PTH101, S103 - the agent may run under another uid

    async def close(self) -> None:
        """End every stream and stop listening."""
        if self._sessions.current is not None:
            self._sessions.current.orders.put_nowait(None)
        for task in list(self._tasks):
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _connect(self, request: web.Request) -> web.Response:
        connect = wire.Connect.from_wire(await _body(request))
        if connect.protocol != wire.PROTOCOL_VERSION:
            raise wire.ProtocolError(
                f"protocol {connect.protocol} is not supported; use protocol {wire.PROTOCOL_VERSION}"
            )
        session = await self._sessions.admit(connect)
        session.uid = _peer_uid(request)
        try:
            connected = await asyncio.shield(asyncio.ensure_future(self._host.connect(session)))
        except BaseException:
            self._end(session)
            raise
        task = asyncio.ensure_future(self._end_unless_streaming(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.json_response(connected.to_wire())

    async def _end_unless_streaming(self, session: ProcessSession) -> None:
        await asyncio.sleep(STREAM_OPEN_SECONDS)
        if not session.streaming:
            self._end(session)

    async def _orders(self, request: web.Request) -> web.StreamResponse:
        session = self._sessions.find(request.query.get("session", ""))
        if session.streaming:
            raise Unavailable("another connection already reads the orders of this session")
        session.streaming = True
        session.opened.set()
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            await response.write(b"{}\n")
            await self._stream(session, response)
            with suppress(ConnectionError):
                await response.write_eof()
        except ConnectionError:
            pass
        finally:
            self._end(session)
        return response

    async def _stream(self, session: ProcessSession, response: web.StreamResponse) -> None:
        while True:
            try:
                async with asyncio.timeout(wire.KEEPALIVE_SECONDS):
                    order = await session.orders.get()
            except TimeoutError:
                await response.write(b"{}\n")
                continue
            if order is None:
                return
            plain = order.to_wire()
            if plain.get("message"):
                plain["message"] = self._reword(plain["message"])
            await response.write(json.dumps(plain).encode() + b"\n")

    @web.middleware
    async def _reworded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Reword the message of a problem, which an exception of the SDK shows to the user."""
        response = await handler(request)
        if response.status >= HTTPStatus.BAD_REQUEST and isinstance(response, web.Response) and response.text:
            plain = json.loads(response.text)
            response.text = json.dumps({**plain, "message": self._reword(plain["message"])})
        return response

    async def _flush(self, request: web.Request) -> web.Response:
        flush = wire.Flush.from_wire(await _body(request))
        session = self._sessions.find(flush.session)
        transaction = session.transaction
        if transaction is None or transaction.id != flush.transaction or not transaction.accept_flush(flush):
            return _problem(409, "TransactionOver", "this transaction is over and its flush was discarded; continue")
        session.execution = flush.execution
        if await asyncio.shield(transaction.resumed):
            return web.json_response({"resume": True})
        if transaction.error is None:
            return _problem(409, "TransactionOver", "the checkpoint failed; continue")
        return _problem(409, transaction.error.code, str(transaction.error))

    async def _failed(self, request: web.Request) -> web.Response:
        failed = wire.Failed.from_wire(await _body(request))
        session = self._sessions.find(failed.session)
        if session.transaction is not None and session.transaction.id == failed.transaction:
            session.transaction.agent_failed(failed)
        return web.json_response({})

    async def _resumed(self, request: web.Request) -> web.Response:
        resumed = wire.Resumed.from_wire(await _body(request))
        transaction = self._sessions.find(resumed.session).recent_transactions.get(resumed.transaction)
        if transaction is not None:
            transaction.pause_milliseconds = resumed.pause_milliseconds
        return web.json_response({})

    async def _checkpoint(self, request: web.Request) -> web.Response:
        checkpoint_request = wire.CheckpointRequest.from_wire(await _body(request))
        self._host.request_checkpoint(self._sessions.find(checkpoint_request.session), checkpoint_request)
        return web.json_response({}, status=202)

    async def _finish(self, request: web.Request) -> web.Response:
        flush = wire.Flush.from_wire(await _body(request))
        session = self._sessions.find(flush.session)
        session.execution = flush.execution
        checkpoint = await asyncio.shield(asyncio.ensure_future(self._host.finish(session, flush)))
        session.finished = True
        return web.json_response({"checkpoint": checkpoint})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._host.status())

    def _end(self, session: ProcessSession) -> None:
        if session.alive:
            session.end()
            self._host.handle_disconnect(session)


def _peer_uid(request: web.Request) -> int | None:
    """Return the uid of the process at the other end of the socket."""
    peer = request.transport.get_extra_info("socket") if request.transport is not None else None
    if peer is None:
        return None
    try:
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise wire.ProtocolError("the body is not JSON") from error


def _problem(status: int, reason: str, message: str) -> web.Response:
    return web.json_response(wire.Problem(reason, message).to_wire(), status=status)


@web.middleware
async def _errors_as_problems(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except wire.ProtocolError as error:
        return _problem(400, "ProtocolError", str(error))
    except SavepointError as error:
        code = error.code
        return _problem(_STATUS.get(code, 503), code, str(error))
    except web.HTTPException as error:
        return _problem(error.status, "ProtocolError", error.reason)
    except OSError as error:
        log.exception("agent call %s failed", request.path)
        return _problem(500, Reason.ERROR, f"{error.strerror or error}: see the sidecar's log")
