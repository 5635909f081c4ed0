"""A fake sidecar for unit tests: the server side of docs/agent-protocol.md for one agent, with its state in memory.

It commits everything that is flushed, keeps what is committed across sessions, and can be made to misbehave. It
captures no files and has no operator. Standard library only, with threads.
"""

import json
import queue
import shutil
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout

Contents = tuple[tuple[wire.Component, tuple[bytes, ...]], ...]
"""The components of a checkpoint, with the bytes of each entry."""


class Refusal(Exception):
    """Raised to answer a call with this status, reason and message."""

    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


@dataclass
class FakeSession:
    """The session of one connected process."""

    id: str
    connect: wire.Connect
    orders: "queue.SimpleQueue[wire.Order | None]" = field(default_factory=queue.SimpleQueue)
    ended: threading.Event = field(default_factory=threading.Event)


class FakeSidecar:
    """Serves ``root/agent.sock``; the stage is ``root/stage``."""

    def __init__(self, root: Path, *, features: tuple[str, ...] = (wire.FEATURE_REATTACH,)) -> None:
        self.socket = root / "agent.sock"
        self.stage = root / "stage"
        self.stage.mkdir(exist_ok=True)
        self.features = features
        self.run = 1
        self.epoch = 1
        self.committed: Contents | None = None
        self.name = ""  # of the newest checkpoint
        self.flushes: list[wire.Flush] = []
        self.failures: list[wire.Failed] = []
        self.pauses: list[wire.Resumed] = []
        self.requests: list[wire.CheckpointRequest] = []
        self.connects: list[wire.Connect] = []
        self.finished = False
        self.sends_results = True  # whether a result follows each flush
        self.on_flush: Callable[[wire.Flush], None] = lambda flush: None  # may raise Refusal or wait
        self.on_request: Callable[[wire.CheckpointRequest], None] = self._answer_request
        self.changed = threading.Condition()
        self._session: FakeSession | None = None
        self._numbers = 0
        self._requests: dict[str, str | None] = {}  # transaction -> the request it answers
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    # -- running --

    def __enter__(self) -> "FakeSidecar":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve the socket."""
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop as if the container were killed: every stream ends, the socket disappears, sessions are forgotten."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        session, self._session = self._session, None
        if session is not None:
            session.orders.put(None)
        server.shutdown()
        server.server_close()
        self._thread.join()
        self.socket.unlink(missing_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the agent's process."""
        return {"SAVEPOINT_SOCKET": str(self.socket), "SAVEPOINT_STAGE": str(self.stage)}

    @property
    def session(self) -> FakeSession:
        """The current session."""
        assert self._session is not None, "no agent is connected"
        return self._session

    # -- orders --

    def send(self, order: wire.Order) -> None:
        """Send an order on the stream."""
        self.session.orders.put(order)

    def quiesce(self, *, timeout_seconds: float = 20.0, hold_seconds: float = 10.0, request: str | None = None) -> str:
        """Order a flush. Returns the transaction's id."""
        transaction = self._transaction(request)
        self.send(wire.Quiesce(transaction, timeout_seconds, hold_seconds, "Interval"))
        return transaction

    def stopping(self, grace_seconds: float = 20.0) -> str:
        """Order the final flush of the process. Returns the transaction's id."""
        transaction = self._transaction(None)
        self.send(wire.Stopping(transaction, grace_seconds))
        return transaction

    def result(self, transaction: str, outcome: str = "Ready", reason: str = "", message: str = "") -> None:
        """Send the result of a transaction."""
        request = self._requests.pop(transaction, None)
        self.send(wire.Result(transaction, outcome, request, self.name, reason, message))

    def wait_for(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until a call arrives that makes the condition true."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), "the agent did not make the expected call"

    # -- calls, from the server's threads --

    def connect(self, connect: wire.Connect) -> wire.Connected:
        """Answer POST /v1/connect."""
        previous = self._session
        if previous is not None and not previous.ended.wait(1.0):
            raise Refusal(409, "SessionInUse", f"process {previous.connect.pid} is connected")
        self._numbers += 1
        self._session = FakeSession(f"session-{self._numbers}", connect)
        self._record(self.connects, connect)
        components: tuple[wire.Component, ...] = ()
        restored = None
        if self.committed is not None and not connect.reattach:
            components = self._restore(self.committed)
            restored = wire.Restored(self.name, 1, 1, "2000-01-01T00:00:00Z", "Restarted")
        return wire.Connected(
            self._session.id, "coder", "team", self.epoch, self.run, restored, components, self.features
        )

    def flush(self, flush: wire.Flush) -> dict[str, Any]:
        """Answer POST /v1/flush."""
        self._check(flush.session)
        self.on_flush(flush)
        self._commit(flush)
        if self.sends_results:
            self.result(flush.transaction)
        return {"resume": True}

    def finish(self, flush: wire.Flush) -> dict[str, Any]:
        """Answer POST /v1/finish."""
        self._check(flush.session)
        self._commit(flush)
        self.finished, self.committed = True, None
        self.run += 1
        return {"checkpoint": self.name}

    def checkpoint(self, request: wire.CheckpointRequest) -> dict[str, Any]:
        """Answer POST /v1/checkpoint."""
        self._check(request.session)
        self._record(self.requests, request)
        self.on_request(request)
        return {}

    def failed(self, failed: wire.Failed) -> dict[str, Any]:
        """Answer POST /v1/failed."""
        self._record(self.failures, failed)
        self.result(failed.transaction, "Failed", failed.reason, failed.message)
        return {}

    def resumed(self, resumed: wire.Resumed) -> dict[str, Any]:
        """Answer POST /v1/resumed."""
        self._record(self.pauses, resumed)
        return {}

    def stream(self, session: str, write: Callable[[bytes], object], ended: Callable[[], bool]) -> None:
        """Answer GET /v1/orders with the stream of orders."""
        current = self.session
        assert current.id == session
        try:
            write(b"{}\n")
            while True:
                try:
                    order = current.orders.get(timeout=0.02)
                except queue.Empty:
                    if ended():
                        return
                    continue
                if order is None:
                    return
                write(json.dumps(order.to_wire()).encode() + b"\n")
        except OSError:
            return
        finally:
            current.ended.set()

    # -- internals --

    def _transaction(self, request: str | None) -> str:
        self._numbers += 1
        transaction = f"t{self._numbers}"
        self._requests[transaction] = request
        return transaction

    def _answer_request(self, request: wire.CheckpointRequest) -> None:
        self.quiesce(request=request.request)

    def _check(self, session: str) -> None:
        if self._session is None or self._session.id != session:
            raise Refusal(409, "SessionInUse", "not the current session")

    def _record(self, calls: list[Any], call: object) -> None:
        with self.changed:
            calls.append(call)
            self.changed.notify_all()

    def _commit(self, flush: wire.Flush) -> None:
        self.committed = tuple(
            (item, tuple(self._content(entry) for entry in item.entries)) for item in flush.components
        )
        self.name = f"coder-{len(self.flushes) + 1}"
        self._record(self.flushes, flush)

    def _content(self, entry: wire.Entry) -> bytes:
        data = entry.inline.encode() if entry.inline is not None else (self.stage / str(entry.path)).read_bytes()
        assert len(data) == entry.size
        return data

    def _restore(self, committed: Contents) -> tuple[wire.Component, ...]:
        folder = stage_layout.restored_folder(self.stage)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        components: list[wire.Component] = []
        for component, contents in committed:
            entries: list[wire.Entry] = []
            for entry, content in zip(component.entries, contents, strict=True):
                path = folder / f"{component.name}-{len(entries)}"
                path.write_bytes(content)
                relative = path.relative_to(self.stage).as_posix()
                entries.append(wire.Entry(entry.name, entry.encoding, len(content), path=relative, meta=entry.meta))
            components.append(wire.Component(component.name, component.kind, tuple(entries)))
        return tuple(components)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, sidecar: FakeSidecar) -> None:
        self.sidecar = sidecar
        super().__init__(str(sidecar.socket), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore callers that end in the middle of a call."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != wire.PATH_ORDERS:
            self._answer(200, {"agent": "coder", "epoch": 1, "connected": True, "authority": "connected"})
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def write(data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def ended() -> bool:
            try:
                peeked: bytes = self.connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            except ConnectionError:
                return True
            except BlockingIOError:
                return False
            return peeked == b""

        self.server.sidecar.stream(parse_qs(url.query)["session"][0], write, ended)
        self.close_connection = True

    def do_POST(self) -> None:
        raw = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sidecar = self.server.sidecar
        calls: dict[str, Callable[[], dict[str, Any]]] = {
            wire.PATH_CONNECT: lambda: sidecar.connect(wire.Connect.from_wire(raw)).to_wire(),
            wire.PATH_FLUSH: lambda: sidecar.flush(wire.Flush.from_wire(raw)),
            wire.PATH_FINISH: lambda: sidecar.finish(wire.Flush.from_wire(raw)),
            wire.PATH_CHECKPOINT: lambda: sidecar.checkpoint(wire.CheckpointRequest.from_wire(raw)),
            wire.PATH_FAILED: lambda: sidecar.failed(wire.Failed.from_wire(raw)),
            wire.PATH_RESUMED: lambda: sidecar.resumed(wire.Resumed.from_wire(raw)),
        }
        try:
            self._answer(202 if self.path == wire.PATH_CHECKPOINT else 200, calls[self.path]())
        except Refusal as refusal:
            self._answer(refusal.status, wire.Problem(refusal.reason, refusal.message).to_wire())

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
