"""HTTP/1.1 connections that are kept, bounded in time, and read into the caller's buffers. Standard library only.

It moves bytes and knows headers; what a status means is for ``answer``, which key is meant for ``presigned``. It
follows no redirect, takes no proxy from the environment and accepts no compressed body.
"""

import http.client
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from savepoint.errors import StoreMisconfigured

SEND_BYTES = 128 << 10


class Deadline:
    """A moment by a monotonic clock; every wait on the way to it is also bounded by itself."""

    def __init__(self, seconds: float, idle_seconds: float, clock: Callable[[], float]) -> None:
        self._end, self._idle, self._clock = clock() + seconds, idle_seconds, clock

    def wait_seconds(self) -> float:
        """How long the next wait may take; TimeoutError once the moment has passed."""
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError("the call took too long")
        return min(self._idle, left)


class _BoundedReader(io.RawIOBase):
    """Reads a socket as far as its deadline allows."""

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
    """An answer whose reads end at the deadline."""

    def __init__(self, sock: socket.socket, *args: Any, deadline: Deadline, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_BoundedReader(raw, sock, deadline), 64 << 10)


class Answer:
    """A status, its headers, and a body that is still to be read."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.getheaders()}

    @property
    def length(self) -> int | None:
        """The body's bytes, if the server said how many."""
        value = self.headers.get("content-length", "")
        return int(value) if value.isdecimal() else None

    def readinto(self, target: memoryview) -> int:
        """Fill as much of ``target`` as the body has; fewer bytes mean its end."""
        done = 0
        while done < len(target):
            count = self._response.readinto(target[done:])
            if not count:
                break
            done += count
        return done

    def read(self, most: int) -> bytes:
        """At most so many bytes of the body."""
        return self._response.read(most)

    def close(self) -> None:
        """Let go of what is left of the body."""
        self._response.close()

    @property
    def finished(self) -> bool:
        """Whether nothing of the body is left, so that the connection can be used again."""
        return self._response.isclosed() and not self._response.will_close


class Connections:
    """Connections to the hosts of URLs; an idle one is used again unless its server has closed it."""

    def __init__(
        self,
        ca_pem: str | None = None,
        *,
        connect_seconds: float = 10.0,
        idle_seconds: float = 30.0,
        call_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``idle_seconds`` bounds each wait for a byte, ``call_seconds`` a whole request with its answer."""
        self._context = trust(ca_pem)
        self._connect_seconds, self._idle_seconds, self._call_seconds = connect_seconds, idle_seconds, call_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    @contextmanager
    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Sequence[memoryview] = ()
    ) -> Iterator[Answer]:
        """Send a request and borrow its answer; OSError or HTTPException for everything that went wrong below HTTP."""
        place = urlsplit(url)
        if place.scheme not in {"http", "https"} or not place.hostname:
            raise StoreMisconfigured("the store's URL is neither http nor https; correct the store's endpoint")
        deadline = Deadline(self._call_seconds, self._idle_seconds, self._clock)
        connection = self._take(place) or self._connect(place, deadline)
        answer: Answer | None = None
        try:
            answer = _exchange(connection, method, place, headers=headers, body=body, deadline=deadline)
            yield answer
        finally:
            if answer is not None and answer.finished:
                self._give(place, connection)
            else:
                connection.close()
            if answer is not None:
                answer.close()

    def _take(self, place: SplitResult) -> http.client.HTTPConnection | None:
        while True:
            with self._lock:
                idle = self._idle.get((place.scheme, place.netloc))
                connection = idle.pop() if idle else None
            if connection is None or _quiet(connection.sock):
                return connection
            connection.close()

    def _give(self, place: SplitResult, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._idle.setdefault((place.scheme, place.netloc), []).append(connection)

    def _connect(self, place: SplitResult, deadline: Deadline) -> http.client.HTTPConnection:
        assert place.hostname is not None
        seconds = min(self._connect_seconds, deadline.wait_seconds())
        connection: http.client.HTTPConnection
        if place.scheme == "https":
            connection = http.client.HTTPSConnection(place.hostname, place.port, timeout=seconds, context=self._context)
        else:
            connection = http.client.HTTPConnection(place.hostname, place.port, timeout=seconds)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection


def trust(ca_pem: str | None) -> ssl.SSLContext:
    """What to trust: these certificates alone, or the system's."""
    context = ssl.create_default_context(cadata=ca_pem) if ca_pem else ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _quiet(sock: socket.socket) -> bool:
    """Whether an idle connection has nothing to read, so that its server has neither closed it nor said anything."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    place: SplitResult,
    *,
    headers: Mapping[str, str],
    body: Sequence[memoryview],
    deadline: Deadline,
) -> Answer:
    sock = connection.sock
    sock.settimeout(deadline.wait_seconds())
    target = place.path + (f"?{place.query}" if place.query else "")
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if method == "PUT":
        connection.putheader("Content-Length", str(sum(len(view) for view in body)))
    connection.endheaders()
    broken: OSError | None = None
    try:
        for view in body:
            for start in range(0, len(view), SEND_BYTES):
                sock.settimeout(deadline.wait_seconds())
                sock.sendall(view[start : start + SEND_BYTES])
    except (BrokenPipeError, ConnectionResetError) as error:
        broken = error  # the server may have answered before it had read all
    connection.response_class = cast(Any, partial(_BoundedResponse, deadline=deadline))
    try:
        answer = Answer(connection.getresponse())
    except (OSError, http.client.HTTPException):
        if broken is not None:
            raise broken from None
        raise
    return answer
