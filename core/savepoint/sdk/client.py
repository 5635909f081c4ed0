"""The adapter to the sidecar: HTTP/1.1 with JSON over a Unix socket, with the standard library only.

It makes the protocol's calls and translates failures into SavepointErrors; the session decides when to call what. Each
call opens a connection of its own.
"""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from savepoint.contract import agent_protocol as wire
from savepoint.errors import SavepointError, Unavailable
from savepoint.sdk.encoding import utf8
from savepoint.sdk.errors import NotEncodable, RestoreFailed, from_reason

_ANSWER_MAX_BYTES: Final = 64 << 20
_LINE_MAX_BYTES: Final = 1 << 20
_CALL_SECONDS: Final = 30.0
_HOLD_MARGIN_SECONDS: Final = 0.5  # the sidecar gives up first, so that it never reads state that changes again
_SILENCE_SECONDS: Final = 4.0 * wire.KEEPALIVE_SECONDS


class _Connection(http.client.HTTPConnection):
    """An HTTP connection over AF_UNIX."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


class OrderStream:
    """The open stream of orders. Iteration ends when the sidecar ends; ``end`` ends it from another thread."""

    def __init__(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self._socket = connection.sock

    def __iter__(self) -> Iterator[wire.Order]:
        try:
            while line := self._response.readline(_LINE_MAX_BYTES):
                if line.strip() and (order := wire.order_from_wire(json.loads(line))) is not None:
                    yield order
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            return  # closed, silent for too long, or not this protocol: the caller reconnects
        finally:
            self._response.close()
            self._connection.close()

    def end(self) -> None:
        """End the stream, which tells the sidecar that this process no longer uses the session."""
        with contextlib.suppress(OSError):  # already closed
            self._socket.shutdown(socket.SHUT_RDWR)

    def detach(self) -> None:
        """In a forked child: close the descriptor without ending the parent's stream."""
        descriptor = self._socket.detach()  # close() would wait for the response that reads from the socket
        if descriptor >= 0:
            os.close(descriptor)


class Link(Protocol):
    """The calls that an agent makes to its sidecar.

    Every method raises SavepointError and may be called from any thread.
    """

    def flush(self, flush: wire.Flush, hold_seconds: float) -> None:
        """Send the state of a checkpoint; returns when the agent may resume."""

    def finish(self, flush: wire.Flush, timeout_seconds: float) -> str:
        """Send the state of the final checkpoint and complete the run. Returns the checkpoint's name."""

    def request(self, request: wire.CheckpointRequest) -> None:
        """Request a checkpoint: a quiesce and a result follow as orders."""

    def failed(self, failed: wire.Failed) -> None:
        """Report that there will be no flush for a transaction."""

    def resumed(self, resumed: wire.Resumed) -> None:
        """Report the length of a pause."""

    def close(self) -> None:
        """End the session."""


class Client:
    """The calls of docs/agent-protocol.md."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def connect(self, connect: wire.Connect, wait_seconds: float) -> wire.Connected:
        """Connect; blocks until documents and files are restored to one consistent checkpoint.

        A socket that is not served yet is retried for ``wait_seconds``. Raises Unavailable, SessionInUse, RestoreFailed
        and the errors of other reasons that the sidecar reports.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                answer = self._call("POST", wire.PATH_CONNECT, connect.to_wire(), wire.CONNECT_TIMEOUT_SECONDS + 30)
                return wire.Connected.from_wire(answer)
            except wire.ProtocolError as error:
                raise RestoreFailed(
                    f"the sidecar's answer to connect does not follow the agent protocol: {error}"
                ) from error
            except Unavailable as error:
                absent = isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError | ConnectionResetError)
                if not absent or time.monotonic() >= deadline:
                    raise
            time.sleep(0.1)

    def orders(self, session: str) -> OrderStream:
        """Open the stream of orders."""
        connection = _Connection(self._path, _SILENCE_SECONDS)
        try:
            connection.request("GET", f"{wire.PATH_ORDERS}?session={quote(session)}")
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise _problem(response.status, response.read(_LINE_MAX_BYTES))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except SavepointError:
            connection.close()
            raise
        return OrderStream(connection, response)

    def post(self, path: str, body: Mapping[str, Any], timeout_seconds: float = _CALL_SECONDS) -> Mapping[str, Any]:
        """Make one call with a JSON body and return its answer."""
        return self._call("POST", path, body, timeout_seconds)

    def status(self) -> Mapping[str, Any]:
        """Return the answer to ``GET /v1/status``."""
        return self._call("GET", wire.PATH_STATUS, None, _CALL_SECONDS)

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_seconds: float
    ) -> Mapping[str, Any]:
        connection = _Connection(self._path, max(timeout_seconds, 0.001))
        try:
            data = None if body is None else utf8(json.dumps(body, ensure_ascii=False, separators=(",", ":")))
            if data is not None and len(data) > wire.BODY_MAX_BYTES:
                raise NotEncodable(
                    f"the message to the sidecar has {len(data)} bytes (at most {wire.BODY_MAX_BYTES}): "
                    f"use fewer, larger documents and arrays"
                )
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read(_ANSWER_MAX_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            raise _problem(response.status, answer)
        try:
            parsed = json.loads(answer) if answer else {}
        except ValueError as error:
            raise Unavailable(f"the sidecar's answer to {path} is not JSON") from error
        return parsed if isinstance(parsed, dict) else {}

    def _unreachable(self, error: Exception) -> Unavailable:
        if isinstance(error, TimeoutError):
            return Unavailable(f"the sidecar at {self._path} did not answer in time")
        return Unavailable(f"the sidecar at {self._path} cannot be reached: {error or error.__class__.__name__}")


class SocketLink:
    """A Link over the socket, for one session. ``session`` is called for each message: reattaching changes the id."""

    def __init__(self, client: Client, session: Callable[[], str], close: Callable[[], None]) -> None:
        self._client = client
        self._session = session
        self._close = close
        self.finishing = threading.Lock()  # held while a finish call decides whether the session ends

    def flush(self, flush: wire.Flush, hold_seconds: float) -> None:
        self._client.post(wire.PATH_FLUSH, self._with_session(flush.to_wire()), hold_seconds + _HOLD_MARGIN_SECONDS)

    def finish(self, flush: wire.Flush, timeout_seconds: float) -> str:
        with self.finishing:
            answer = self._client.post(wire.PATH_FINISH, self._with_session(flush.to_wire()), timeout_seconds)
            self._close()
            return str(answer.get("checkpoint", ""))

    def request(self, request: wire.CheckpointRequest) -> None:
        self._client.post(wire.PATH_CHECKPOINT, self._with_session(request.to_wire()))

    def failed(self, failed: wire.Failed) -> None:
        self._client.post(wire.PATH_FAILED, self._with_session(failed.to_wire()))

    def resumed(self, resumed: wire.Resumed) -> None:
        self._client.post(wire.PATH_RESUMED, self._with_session(resumed.to_wire()))

    def close(self) -> None:
        self._close()

    def _with_session(self, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "session": self._session()}


def _problem(status: int, body: bytes) -> SavepointError:
    try:
        problem = wire.Problem.from_wire(json.loads(body))
    except ValueError:
        problem = wire.Problem()
    return from_reason(problem.reason, problem.message or f"the sidecar answered with status {status}")
