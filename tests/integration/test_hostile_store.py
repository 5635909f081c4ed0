"""A hostile server in place of the store: redirects are not followed, and no error contains a signature."""

import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from savepoint.errors import SavepointError, StoreMisconfigured
from savepoint.storage.presigned import PresignedStore
from savepoint.storage.retry import Retry
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import S3Config
from savepoint.storage.store import BlobReader, BlobWriter

Store = S3Store | PresignedStore
REDIRECT = (
    b"HTTP/1.1 %d X\r\nLocation: http://127.0.0.1:%d/latest/meta-data\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
ANSWERS = {
    "nothing": b"",
    "noise": b"\x00\x01 noise\r\n\r\n",
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "invalid XML": b"HTTP/1.1 400 Bad\r\nContent-Type: application/xml\r\nContent-Length: 5\r\n\r\n<a><b",
}


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Run a server that sends the same answer to every request; yield its port and the requests it received."""
    listener = socket.create_server(("127.0.0.1", 0))
    requests: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                requests.append(connection.recv(65536))
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


class Urls:
    """Presigned URLs with a recognisable signature."""

    def __init__(self, port: int) -> None:
        self._port = port

    def put_url(self, key: str) -> str:
        return f"http://127.0.0.1:{self._port}/bucket/{key}?X-Amz-Signature=5ec7e7"

    get_url = put_url

    def forget(self, key: str) -> None:
        """Do nothing: there is only one URL per object."""


def with_keys(port: int) -> S3Store:
    return S3Store(
        S3Config(endpoint=f"http://127.0.0.1:{port}", bucket="bucket", access_key="AKIA", secret_key="5ec7e7")
    )


def with_urls(port: int) -> PresignedStore:
    return PresignedStore(Urls(port), retry=Retry(attempts=1, total_seconds=2))


def _put(store: BlobWriter) -> None:
    store.put_new("packs/1", b"x")


def _get(store: BlobReader) -> object:
    return store.get("packs/1", max_bytes=10)


def _head(store: BlobReader) -> object:
    return store.head("packs/1")


@pytest.mark.parametrize("call", [_put, _get, _head])
@pytest.mark.parametrize("make", [with_keys, with_urls])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(make: Callable[[int], Store], call: Callable[[Store], object], status: int) -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (target_port, redirected):
        with answering(REDIRECT % (status, target_port)) as (port, requests):
            store = make(port)
            with pytest.raises(StoreMisconfigured, match=f"{status}.*redirects are not followed"):
                call(store)
            store.close()
        assert requests
        assert redirected == []


@pytest.mark.parametrize("call", [_put, _get, _head])
@pytest.mark.parametrize("make", [with_keys, with_urls])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_no_error_contains_a_signature(
    make: Callable[[int], Store], call: Callable[[Store], object], answer: bytes
) -> None:
    message = ""
    with answering(answer) as (port, _):
        store = make(port)
        try:
            call(store)
        except SavepointError as error:
            message = "".join(traceback.format_exception(error))
        store.close()
    assert "5ec7e7" not in message
    assert "X-Amz" not in message
