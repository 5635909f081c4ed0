"""The agent's Unix socket: docs/agent-protocol.md over HTTP. It parses, answers, keeps the stream; decides nothing.

What the calls mean is for a ``Host``.
"""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web
from savepoint.contract import agent_protocol as wire
from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.agent_api.process_session import OPEN_SECONDS, ProcessSession, ProcessSessions

log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_STATUS: Final = {"SessionInUse": 409, "QuiesceTimeout": 409, "StateUnstable": 409}


class AgentHost(Protocol):
    """Who serves the agent."""

    async def bring_back(self, session: ProcessSession) -> wire.Connected:
        """Let documents and files stand at one cut, and say which. A SavepointError refuses the session."""
        ...

    def asked(self, session: ProcessSession, request: wire.CheckpointRequest) -> None:
        """The agent wants a checkpoint; a result with its request follows."""
        ...

    async def finish(self, session: ProcessSession, flush: wire.Flush) -> str:
        """Take the last checkpoint of the run and complete it; the checkpoint's name."""
        ...

    def ended(self, session: ProcessSession) -> None:
        """The agent's process is gone."""
        ...

    def status(self) -> dict[str, Any]:
        """What ``GET /v1/status`` answers."""
        ...


class SocketServer:
    """Serves one socket until it is closed."""

    def __init__(self, path: Path, sessions: ProcessSessions, host: AgentHost) -> None:
        self._path, self._sessions, self._host = path, sessions, host
        self._runner: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Any process of the pod may connect: the socket's folder says which containers see it."""
        app = web.Application(client_max_size=wire.BODY_MAX_BYTES + 1024, middlewares=[_problems])
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
        hello = wire.Connect.from_wire(await _body(request))
        if hello.protocol != wire.PROTOCOL_VERSION:
            raise wire.ProtocolError(f"protocol {hello.protocol} is not spoken here; use {wire.PROTOCOL_VERSION}")
        session = await self._sessions.admit(hello)
        try:
            connected = await asyncio.shield(asyncio.ensure_future(self._host.bring_back(session)))
        except BaseException:
            self._end(session)
            raise
        task = asyncio.ensure_future(self._watch_opening(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.json_response(connected.to_wire())

    async def _watch_opening(self, session: ProcessSession) -> None:
        await asyncio.sleep(OPEN_SECONDS)
        if not session.streaming:
            self._end(session)

    async def _orders(self, request: web.Request) -> web.StreamResponse:
        session = self._sessions.find(request.query.get("session", ""))
        if session.streaming:
            raise Unavailable("the orders of this session are being read already")
        session.streaming = True
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
            await response.write(json.dumps(order.to_wire()).encode() + b"\n")

    async def _flush(self, request: web.Request) -> web.Response:
        flush = wire.Flush.from_wire(await _body(request))
        session = self._sessions.find(flush.session)
        transaction = session.transaction
        if transaction is None or transaction.id != flush.transaction or not transaction.arrived(flush):
            return _problem(409, "TransactionOver", "nobody waits for this flush any more; go on")
        session.execution = flush.execution
        if await asyncio.shield(transaction.resumed):
            return web.json_response({"resume": True})
        return _problem(409, "TransactionOver", "the checkpoint failed; go on")

    async def _failed(self, request: web.Request) -> web.Response:
        told = wire.Failed.from_wire(await _body(request))
        session = self._sessions.find(told.session)
        if session.transaction is not None and session.transaction.id == told.transaction:
            session.transaction.failed(told)
        return web.json_response({})

    async def _resumed(self, request: web.Request) -> web.Response:
        told = wire.Resumed.from_wire(await _body(request))
        transaction = self._sessions.find(told.session).past.get(told.transaction)
        if transaction is not None:
            transaction.pause_milliseconds = told.pause_milliseconds
        return web.json_response({})

    async def _checkpoint(self, request: web.Request) -> web.Response:
        asked = wire.CheckpointRequest.from_wire(await _body(request))
        self._host.asked(self._sessions.find(asked.session), asked)
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
            self._host.ended(session)


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise wire.ProtocolError("the body is not JSON") from error


def _problem(status: int, reason: str, message: str) -> web.Response:
    return web.json_response(wire.Problem(reason, message).to_wire(), status=status)


@web.middleware
async def _problems(request: web.Request, handler: _Handler) -> web.StreamResponse:
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
        log.exception("the call %s failed", request.path)
        return _problem(500, "Error", f"{error.strerror or error}: see the sidecar's log")
