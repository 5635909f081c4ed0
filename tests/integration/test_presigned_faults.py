"""The presigned store against a scripted, faulty server: each fault becomes the right error, within its deadline."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from savepoint.errors import (
    IntegrityError,
    NoSpace,
    ObjectExists,
    ObjectMissing,
    SavepointError,
    StoreDenied,
    StoreMisconfigured,
    StoreUnavailable,
    Unavailable,
)
from savepoint.storage.connection import Connections
from savepoint.storage.presigned import PresignedStore
from savepoint.storage.retry import Retry
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import S3Config

from tests.servers.pki import Authority

ONCE = Retry(attempts=1)
QUICK = Retry(attempts=3, base_seconds=0.0)


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Request, socket.socket], bool]
"""Answers a request, and returns False to close the connection."""


@dataclass
class Server:
    """A server with one thread per connection and one handler for all requests."""

    handler: Handler
    context: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    read_body: bool = True

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads: list[threading.Thread] = []
        self.sockets: list[socket.socket] = []

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve_one, args=(connection,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve_one(self, connection: socket.socket) -> None:
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            self.sockets.append(connection)
            with connection, connection.makefile("rb") as stream:
                while True:
                    first = stream.readline().decode()
                    if not first:
                        return
                    headers = {}
                    while (line := stream.readline().decode().strip()) != "":
                        name, _, value = line.partition(":")
                        headers[name.lower()] = value.strip()
                    body = stream.read(int(headers.get("content-length", 0))) if self.read_body else b""
                    method, path, _ = first.split()
                    request = Request(method, path, headers, body)
                    self.requests.append(request)
                    if not self.handler(request, connection):
                        return
        except OSError:
            return


@contextmanager
def serving(handler: Handler, **options: Any) -> Iterator[Server]:
    server = Server(handler, **options)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        for connection in server.sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for each in (thread, *server.threads):
            each.join(5)


def answer(status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> Handler:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body) if length is None else length}\r\n{lines}\r\n"

    def handle(_: Request, connection: socket.socket) -> bool:
        connection.sendall(head.encode() + body)
        return length is None

    return handle


def error(status: int, code: str) -> Handler:
    return answer(status, f"<Error><Code>{code}</Code></Error>".encode())


def sequence(*handlers: Handler) -> Handler:
    remaining = list(handlers)

    def handle(request: Request, connection: socket.socket) -> bool:
        current = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return current(request, connection)

    return handle


@dataclass
class Urls:
    server: Server
    requests: int = 0
    forgotten: list[str] = field(default_factory=list)

    def forget(self, key: str) -> None:
        self.forgotten.append(key)

    def put_url(self, key: str) -> str:
        self.requests += 1
        scheme = "https" if self.server.context else "http"
        return f"{scheme}://127.0.0.1:{self.server.port}/bucket/{key}?X-Amz-Signature=secret{self.requests}"

    get_url = put_url


@contextmanager
def store_of(
    server: Server, *, retry: Retry = ONCE, connections: Connections | None = None
) -> Iterator[PresignedStore]:
    with closing(PresignedStore(Urls(server), retry=retry, connections=connections or Connections())) as store:
        yield store


def short_deadlines() -> Connections:
    return Connections(idle_seconds=0.3, call_seconds=0.6)


def hang(_: Request, connection: socket.socket) -> bool:
    connection.settimeout(10)
    connection.recv(1)
    return False


def drip(request: Request, connection: socket.socket) -> bool:
    """Send a byte at a time, slowly."""
    connection.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b"x")
        time.sleep(0.02)
    return True


def stall(request: Request, connection: socket.socket) -> bool:
    connection.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\nhalf")
    return hang(request, connection)


def hang_up(_: Request, connection: socket.socket) -> bool:
    return False


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (error(404, "NoSuchKey"), ObjectMissing), (error(404, "NoSuchBucket"), StoreMisconfigured),
        (answer(404, b"<html>proxy</html>"), StoreMisconfigured), (error(403, "AccessDenied"), StoreDenied),
        (error(503, "SlowDown"), StoreUnavailable), (answer(500), StoreUnavailable), (answer(429), StoreUnavailable),
        (answer(302, Location="http://127.0.0.1:1/elsewhere"), StoreMisconfigured),
        (answer(307, Location="http://169.254.169.254/"), StoreMisconfigured),
        (answer(200, b"short", length=100), StoreUnavailable), (hang_up, StoreUnavailable),
        (lambda _, connection: connection.sendall(b"not HTTP\r\n\r\n") or False, StoreUnavailable),
        (answer(200, bytes(200)), IntegrityError), (answer(204), StoreUnavailable),
    ],
)  # fmt: skip
def test_a_fault_of_a_get_becomes_an_error(handler: Handler, kind: type[SavepointError]) -> None:
    with serving(handler) as server, store_of(server) as store:
        with pytest.raises(kind) as caught:
            store.get("key", max_bytes=100)
        assert "secret" not in str(caught.value)
        assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (error(412, "PreconditionFailed"), ObjectExists), (answer(304), ObjectExists),
        (error(409, "ConditionalRequestConflict"), StoreUnavailable), (error(507, "XMinioStorageFull"), NoSpace),
        (error(403, "QuotaExceeded"), NoSpace), (error(404, "NoSuchBucket"), StoreMisconfigured),
        (error(403, "AccessDenied"), StoreDenied), (answer(500), StoreUnavailable), (hang_up, StoreUnavailable),
        (answer(301, Location="http://elsewhere/"), StoreMisconfigured),
    ],
)  # fmt: skip
def test_a_fault_of_a_put_becomes_an_error(handler: Handler, kind: type[SavepointError]) -> None:
    with serving(handler) as server, store_of(server) as store:
        with pytest.raises(kind) as caught:
            store.put_new("key", b"content")
        assert type(caught.value) is kind
        assert server.requests[0].headers["if-none-match"] == "*"
        assert server.requests[0].body == b"content"


@pytest.mark.parametrize("handler", [hang, stall, drip])
def test_calls_of_a_slow_store_end_at_their_deadline(handler: Handler) -> None:
    """No answer, half an answer, one byte at a time."""
    with serving(handler) as server, store_of(server, connections=short_deadlines()) as store:
        for call in (
            lambda: store.get("key", max_bytes=1000),
            lambda: store.get_into("key", 0, memoryview(bytearray(1000))),
            lambda: store.head("key"),
        ):
            start = time.monotonic()
            with pytest.raises(StoreUnavailable):
                call()
            assert time.monotonic() - start < 3


def test_a_put_ends_at_its_deadline_if_the_store_does_not_read_the_body() -> None:
    with serving(hang, read_body=False) as server, store_of(server, connections=short_deadlines()) as store:
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.put_new("key", bytes(64 << 20))
        assert time.monotonic() - start < 3


def test_an_answer_before_the_body_is_read_is_received() -> None:
    def refuse(_: Request, connection: socket.socket) -> bool:
        body = b"<Error><Code>PreconditionFailed</Code></Error>"
        connection.sendall(b"HTTP/1.1 412 X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(2)
        while connection.recv(1 << 20):
            pass
        return False

    with serving(refuse, read_body=False) as server, store_of(server) as store, pytest.raises(ObjectExists):
        store.put_new("key", bytes(16 << 20))


class TestRanges:
    @pytest.mark.parametrize(
        ("handler", "kind"),
        [
            (answer(200, b"0123"), StoreUnavailable),
            (answer(206, b"0123", Content_Range="bytes 4-7/8"), StoreUnavailable),
            (answer(206, b"0123"), StoreUnavailable),
            (answer(206, b"01", Content_Range="bytes 0-1/2"), IntegrityError),
            (answer(206, b"01", length=4, Content_Range="bytes 0-3/8"), StoreUnavailable),
            (answer(416), IntegrityError),
        ],
    )
    def test_a_range_other_than_the_requested_one_is_an_error(
        self, handler: Handler, kind: type[SavepointError]
    ) -> None:
        with serving(handler) as server, store_of(server) as store, pytest.raises(kind) as caught:
            store.get_into("key", 0, memoryview(bytearray(4)))
        assert type(caught.value) is kind

    def test_head_reads_the_size_from_the_range(self) -> None:
        with serving(answer(206, b"x", Content_Range="bytes 0-0/123")) as server, store_of(server) as store:
            info = store.head("key")
            assert info is not None
            assert info.size == 123
        with serving(answer(416)) as server, store_of(server) as store:
            info = store.head("key")
            assert info is not None
            assert info.size == 0
        unknown = answer(206, b"x", Content_Range="bytes 0-0/*")
        with serving(unknown) as server, store_of(server) as store, pytest.raises(StoreUnavailable):
            store.head("key")


class TestRetries:
    def test_transient_faults_are_retried(self) -> None:
        for fault in (answer(503), error(409, "ConditionalRequestConflict"), hang_up, answer(429)):
            with serving(sequence(fault, answer(200, b"content"))) as server, store_of(server, retry=QUICK) as store:
                assert store.get("key", max_bytes=10) == b"content"
            with serving(sequence(fault, answer(200))) as server, store_of(server, retry=QUICK) as store:
                store.put_new("key", b"content")

    def test_an_expired_url_is_renewed_once(self) -> None:
        refused = error(403, "AccessDenied")
        with serving(sequence(refused, answer(200, b"content"))) as server, store_of(server) as store:
            assert store.get("key", max_bytes=10) == b"content"
            assert [request.path[-7:] for request in server.requests] == ["secret1", "secret2"]
        with serving(refused) as server:
            urls = Urls(server)
            with closing(PresignedStore(urls, retry=QUICK)) as store, pytest.raises(StoreDenied):
                store.get("key", max_bytes=10)
            assert len(server.requests) == 2
            assert urls.forgotten == ["key"]

    @pytest.mark.parametrize("stored", [b"content", b"another"])
    def test_a_put_whose_answer_was_lost_is_recognised(self, stored: bytes) -> None:
        """The put was applied, then the connection broke; the retry gets 412 and reads the object."""
        puts: list[Request] = []

        def handle(request: Request, connection: socket.socket) -> bool:
            if request.method == "PUT":
                puts.append(request)
                return False if len(puts) == 1 else error(412, "PreconditionFailed")(request, connection)
            first, last = (int(n) for n in request.headers["range"][6:].split("-"))
            part = stored[first : last + 1]
            return answer(206, part, Content_Range=f"bytes {first}-{last}/{len(stored)}")(request, connection)

        with serving(handle) as server, store_of(server, retry=QUICK) as store:
            if stored == b"content":
                store.put_new("key", b"content")
            else:
                with pytest.raises(ObjectExists):
                    store.put_new("key", b"content")

    def test_a_connection_that_the_server_closed_is_replaced(self) -> None:

        def handle(request: Request, connection: socket.socket) -> bool:
            answer(200, b"content")(request, connection)
            return False

        with serving(handle) as server, store_of(server) as store:
            for _ in range(3):
                assert store.get("key", max_bytes=10) == b"content"
                deadline = time.monotonic() + 5
                while any(thread.is_alive() for thread in server.threads) and time.monotonic() < deadline:
                    time.sleep(0.01)
            assert server.connections == 3

    def test_a_healthy_connection_is_reused(self) -> None:
        with serving(answer(200, b"content")) as server, store_of(server) as store:
            for _ in range(5):
                store.get("key", max_bytes=10)
            assert server.connections == 1


class TestTls:
    def test_only_the_configured_authority_is_trusted(self, tmp_path: Path) -> None:
        authority, other = Authority(), Authority()
        context = authority.server_context(["127.0.0.1"], tmp_path)
        with serving(answer(200, b"content"), context=context) as server:
            with store_of(server, connections=Connections(authority.certificate.decode())) as store:
                assert store.get("key", max_bytes=10) == b"content"
                store.put_new("key", bytes(3 << 20))
            with (
                store_of(server, connections=Connections(other.certificate.decode())) as store,
                pytest.raises(StoreMisconfigured, match="not trusted"),
            ):
                store.get("key", max_bytes=10)
            endpoint = f"https://127.0.0.1:{server.port}"
            config = S3Config(endpoint, "bucket", "key", "secret", ca_pem=authority.certificate.decode())
            with closing(S3Store(config)) as s3:
                assert s3.get("key", max_bytes=10) == b"content"
            config = S3Config(endpoint, "bucket", "key", "secret", ca_pem=other.certificate.decode())
            with closing(S3Store(config)) as s3, pytest.raises(StoreMisconfigured, match="not trusted"):
                s3.get("key", max_bytes=10)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "//host/x", "http://"])
def test_a_url_that_is_neither_http_nor_https_is_refused(url: str) -> None:
    class InvalidUrls:
        def put_url(self, key: str) -> str:
            return url

        get_url = put_url

        def forget(self, key: str) -> None:
            """Do nothing: there is only one URL."""

    with closing(PresignedStore(InvalidUrls(), retry=ONCE)) as store, pytest.raises(StoreMisconfigured):
        store.get("key", max_bytes=10)
    assert repr(store) == "PresignedStore()"


class TestS3StoreFaults:
    """Faults of the store with keys that only a faulty server can cause."""

    @contextmanager
    def s3(self, handler: Handler) -> Iterator[S3Store]:
        with serving(handler) as server:
            config = S3Config(f"http://127.0.0.1:{server.port}", "bucket", "key", "secret")
            with closing(S3Store(config)) as store:
                yield store

    @pytest.mark.parametrize(
        ("handler", "kind"),
        [
            (answer(404, b"<html>", Content_Type="text/html"), StoreMisconfigured),
            (error(404, "NoSuchKey"), ObjectMissing),
            (hang_up, StoreUnavailable),
            (answer(500), StoreUnavailable), (answer(503, Retry_After="60"), StoreUnavailable),
            (answer(302, Location="http://127.0.0.1:1/"), StoreMisconfigured),
            (answer(500, b"<html>", Content_Type="text/html"), StoreUnavailable),
            (answer(403, b"<Err", Content_Type="application/xml"), StoreUnavailable),
            (answer(200, b"short", length=100), StoreUnavailable), (answer(200, bytes(200)), IntegrityError),
        ],
    )  # fmt: skip
    def test_a_fault_of_a_get_becomes_an_error(self, handler: Handler, kind: type[SavepointError]) -> None:
        with self.s3(handler) as store, pytest.raises(kind) as caught:
            store.get("key", max_bytes=100)
        assert type(caught.value) is kind

    def test_a_truncated_range_is_unavailable(self) -> None:
        with self.s3(answer(206, b"01", length=4)) as store, pytest.raises(StoreUnavailable):
            store.get_into("key", 0, memoryview(bytearray(4)))

    def test_a_head_without_an_error_code_is_classified(self) -> None:
        with self.s3(answer(404)) as store, pytest.raises(StoreMisconfigured, match="does not exist; create it"):
            store.head("key")
        with self.s3(answer(403)) as store, pytest.raises(StoreDenied):
            store.head("key")


def call_in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, raised


def ends_when_interrupted(store: PresignedStore, call: Callable[[], object]) -> None:
    """Check that a stuck call ends at once when it is interrupted, although its own limits are minutes away."""
    thread, raised = call_in_thread(call)
    time.sleep(0.4)
    assert thread.is_alive()
    began = time.monotonic()
    store.interrupt()
    thread.join(10)
    assert not thread.is_alive() and time.monotonic() - began < 2
    assert isinstance(raised[0], Unavailable) and "interrupted" in str(raised[0])


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_upload_to_a_server_that_stops_reading_can_be_interrupted(encrypted: bool, tmp_path: Path) -> None:
    released = threading.Event()

    def stall(_: Request, connection: socket.socket) -> bool:
        released.wait(20)
        return False

    authority = Authority()
    context = authority.server_context(["127.0.0.1"], tmp_path) if encrypted else None
    connections = Connections(authority.certificate.decode()) if encrypted else Connections()
    with (
        serving(stall, context=context, read_body=False) as server,
        store_of(server, retry=Retry(), connections=connections) as store,
    ):
        ends_when_interrupted(store, lambda: store.put_new("packs/1-a", bytes(64 << 20)))
        released.set()


def test_a_wait_for_an_answer_and_a_pause_between_attempts_can_be_interrupted() -> None:
    with serving(hang) as server, store_of(server, retry=Retry()) as store:
        ends_when_interrupted(store, lambda: store.get("packs/1-a", max_bytes=10))
    slow = Retry(base_seconds=30.0, longest_seconds=60.0)
    with serving(error(503, "SlowDown")) as server, store_of(server, retry=slow) as store:
        ends_when_interrupted(store, lambda: store.put_new("packs/1-a", b"x"))


def test_a_call_after_an_interruption_works() -> None:
    with serving(answer(200)) as server, store_of(server) as store:
        store.interrupt()
        store.put_new("packs/1-a", b"x")
