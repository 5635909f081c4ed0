"""HTTP/1.1 connections that are reused, have deadlines, and read into the caller's buffers. Standard library only.

This module moves bytes and headers; ``s3_errors`` interprets a status, ``presigned`` chooses the URL. It follows no
redirect, takes no proxy from the environment and accepts no compressed body.
"""

import http.client
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from savepoint.errors import StoreMisconfigured

SEND_BYTES = 128 << 10


class Deadline:
    """The time by which a request must end; each single wait is also limited by the idle time."""

    def __init__(self, seconds: float, idle_seconds: float, clock: Callable[[], float]) -> None:
        self._end, self._idle, self._clock = clock() + seconds, idle_seconds, clock

    def wait_seconds(self) -> float:
        """Return how long the next wait may take; raise TimeoutError once the deadline has passed."""
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError("the request took too long")
        return min(self._idle, left)


class _BoundedReader(io.RawIOBase):
    """Reads a socket, never waiting beyond the deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: Deadline) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.wait_seconds())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    """A response whose reads end at the deadline."""

    def __init__(self, sock: socket.socket, *args: Any, deadline: Deadline, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_BoundedReader(raw, sock, deadline), 64 << 10)


class Response:
    """A response's status and headers, and its body, which has not been read yet."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.getheaders()}

    @property
    def length(self) -> int | None:
        """The body's length in bytes, if the server sent it."""
        value = self.headers.get("content-length", "")
        return int(value) if value.isdecimal() else None

    def readinto(self, target: memoryview) -> int:
        """Read into ``target`` and return the count of bytes; fewer than ``len(target)`` mean that the body ended."""
        done = 0
        while done < len(target):
            count = self._response.readinto(target[done:])
            if not count:
                break
            done += count
        return done

    def read(self, most: int) -> bytes:
        """Read at most ``most`` bytes of the body."""
        return self._response.read(most)

    def close(self) -> None:
        """Discard the rest of the body."""
        self._response.close()

    @property
    def finished(self) -> bool:
        """True if the whole body was read, so that the connection can be reused."""
        return self._response.isclosed() and not self._response.will_close


class Connections:
    """Connections to the hosts of URLs. Idle ones are reused unless their server has closed them. Thread-safe."""

    def __init__(
        self,
        ca_pem: str | None = None,
        *,
        connect_seconds: float = 10.0,
        idle_seconds: float = 30.0,
        call_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open no connection yet.

        Args:
            ca_pem: PEM certificates to trust instead of the system's.
            connect_seconds: The limit for establishing a connection.
            idle_seconds: The limit for each wait for a byte.
            call_seconds: The limit for a whole request with its response.
            clock: A monotonic clock, in seconds.
        """
        self._context = ssl_context(ca_pem)
        self._connect_seconds, self._idle_seconds, self._call_seconds = connect_seconds, idle_seconds, call_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._busy: set[http.client.HTTPConnection] = set()
        self.interruptions = 0
        """Number of calls of ``interrupt``."""

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def interrupt(self) -> None:
        """End every request in progress: its thread gets an OSError at once, however stuck the server is."""
        with self._lock:
            self.interruptions += 1
            for connection in self._busy:
                if connection.sock is not None:
                    with suppress(OSError):
                        # Not SSLSocket.shutdown, which takes the TLS state away from the thread that is using it.
                        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Sequence[memoryview] = (),
        *,
        since: int | None = None,
    ) -> Iterator[Response]:
        """Send a request and yield its response, which is valid within the context.

        Args:
            method: The HTTP method.
            url: An http or https URL.
            headers: The headers to send.
            body: The parts of the body, for a PUT.
            since: The count of interruptions when the caller's work began; a later one ends the request too.

        Yields:
            The response, whatever its status.

        Raises:
            StoreMisconfigured: The URL is neither http nor https.
            OSError, http.client.HTTPException: The connection or the protocol failed, or a deadline passed.
        """
        target = urlsplit(url)
        if target.scheme not in {"http", "https"} or not target.hostname:
            raise StoreMisconfigured("the store's URL is neither http nor https; correct the store's endpoint")
        deadline = Deadline(self._call_seconds, self._idle_seconds, self._clock)
        connection = self._take_idle(target) or self._connect(target, deadline)
        response: Response | None = None
        try:
            with self._lock:
                self._busy.add(connection)
                if since is not None and since != self.interruptions:
                    raise InterruptedError("the request was interrupted")
            response = _exchange(connection, method, target, headers=headers, body=body, deadline=deadline)
            yield response
        finally:
            with self._lock:
                self._busy.discard(connection)
            if response is not None and response.finished:
                self._keep_idle(target, connection)
            else:
                connection.close()
            if response is not None:
                response.close()

    def _take_idle(self, target: SplitResult) -> http.client.HTTPConnection | None:
        while True:
            with self._lock:
                idle = self._idle.get((target.scheme, target.netloc))
                connection = idle.pop() if idle else None
            if connection is None or _is_silent(connection.sock):
                return connection
            connection.close()

    def _keep_idle(self, target: SplitResult, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._idle.setdefault((target.scheme, target.netloc), []).append(connection)

    def _connect(self, target: SplitResult, deadline: Deadline) -> http.client.HTTPConnection:
        assert target.hostname is not None
        seconds = min(self._connect_seconds, deadline.wait_seconds())
        connection: http.client.HTTPConnection
        if target.scheme == "https":
            connection = http.client.HTTPSConnection(
                target.hostname, target.port, timeout=seconds, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(target.hostname, target.port, timeout=seconds)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection


def ssl_context(ca_pem: str | None) -> ssl.SSLContext:
    """Return a TLS context that trusts these PEM certificates alone, or the system's if there are none."""
    context = ssl.create_default_context(cadata=ca_pem) if ca_pem else ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _is_silent(sock: socket.socket) -> bool:
    """Return whether an idle connection has nothing to read: its server has neither closed it nor sent anything."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    target: SplitResult,
    *,
    headers: Mapping[str, str],
    body: Sequence[memoryview],
    deadline: Deadline,
) -> Response:
    sock = connection.sock
    sock.settimeout(deadline.wait_seconds())
    path = target.path + (f"?{target.query}" if target.query else "")
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if method == "PUT":
        connection.putheader("Content-Length", str(sum(len(view) for view in body)))
    connection.endheaders()
    send_error: OSError | None = None
    try:
        for view in body:
            for start in range(0, len(view), SEND_BYTES):
                sock.settimeout(deadline.wait_seconds())
                sock.sendall(view[start : start + SEND_BYTES])
    except (BrokenPipeError, ConnectionResetError) as error:
        send_error = error  # the server may have answered before reading the whole body
    connection.response_class = cast(Any, partial(_BoundedResponse, deadline=deadline))
    try:
        response = Response(connection.getresponse())
    except (OSError, http.client.HTTPException):
        if send_error is not None:
            raise send_error from None
        raise
    return response
