"""A store for processes that hold no credentials: every object is reached by a URL that the operator has signed.

Pods use it. It can neither list nor delete, because no URL permits that. Each attempt requests its URL again, so the
source can replace an expired one. URLs never appear in errors, because they are credentials.
"""

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

from savepoint.errors import (
    IntegrityError,
    ObjectMissing,
    SavepointError,
    StoreDenied,
    StoreMisconfigured,
    StoreUnavailable,
    Unavailable,
)
from savepoint.storage.connection import Connections, Response
from savepoint.storage.retry import Retry
from savepoint.storage.s3_errors import error_code, s3_error
from savepoint.storage.store import Buffer, ObjectInfo, check_key, parts

T = TypeVar("T")

_ERROR_BYTES = 8192
_PAUSE_SECONDS = 0.2
"""The longest part of a pause between attempts, after which an interruption is noticed."""


class UrlSource(Protocol):
    """Supplies presigned URLs. Its methods may block, and raise Unavailable if no URL is available."""

    def put_url(self, key: str) -> str:
        """Return a URL that creates the object, once."""
        ...

    def get_url(self, key: str) -> str:
        """Return a URL that reads the object."""
        ...

    def forget(self, key: str) -> None:
        """Discard the current URL of this object, because the store has rejected it."""
        ...


class PresignedStore:
    """A BlobReader and BlobWriter over presigned URLs, with its own retries.

    Its methods take, return and raise what those protocols document, and Unavailable if there is no URL.
    """

    def __init__(
        self,
        urls: UrlSource,
        *,
        ca_pem: str | None = None,
        retry: Retry | None = None,
        connections: Connections | None = None,
    ) -> None:
        """Open no connection yet.

        Args:
            urls: Supplies the URLs.
            ca_pem: PEM certificates to trust instead of the system's.
            retry: The retry policy; the default policy if None.
            connections: Connections with other time limits; ``ca_pem`` is then ignored.
        """
        self._urls, self._retry = urls, retry or Retry()
        self._connections = connections or Connections(ca_pem)
        self._active = threading.local()

    def __repr__(self) -> str:
        return "PresignedStore()"

    def close(self) -> None:
        """Close idle connections."""
        self._connections.close()

    def interrupt(self) -> None:
        """End every call in progress: it raises Unavailable now, though a put may still create its object.

        Later calls are not affected.
        """
        self._connections.interrupt()

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object. After a lost response, an object with exactly these bytes is a success."""
        with self._interruptible() as retry:
            retry.put_new(self._put, self, key, data)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object."""
        with self._interruptible() as retry:
            return retry.run(lambda: self._with_fresh_url(key, lambda: self._get(key, max_bytes)))

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range into ``target``."""
        view = target.cast("B")
        if len(view):
            with self._interruptible() as retry:
                retry.run(lambda: self._with_fresh_url(key, lambda: self._get_into(key, offset, view)))

    def head(self, key: str) -> ObjectInfo | None:
        """Look up the size by reading the first byte: a URL signed for GET does not permit HEAD."""
        try:
            with self._interruptible() as retry:
                return retry.run(lambda: self._with_fresh_url(key, lambda: self._head(key)))
        except ObjectMissing:
            return None

    @contextmanager
    def _interruptible(self) -> Iterator[Retry]:
        """Yield the retry policy for one call of this thread; it attempts nothing more after an interruption."""
        outer: int | None = getattr(self._active, "since", None)
        self._active.since = self._connections.interruptions if outer is None else outer  # a put reads its object back
        try:
            yield replace(self._retry, sleep=self._pause)
        finally:
            self._active.since = outer

    def _pause(self, seconds: float) -> None:
        while True:
            self._require_uninterrupted()
            self._retry.sleep(min(seconds, _PAUSE_SECONDS))
            seconds -= _PAUSE_SECONDS
            if seconds <= 0:
                return

    def _require_uninterrupted(self) -> None:
        if self._active.since != self._connections.interruptions:
            raise Unavailable("the call to the store was interrupted, because its checkpoint attempt has ended")

    def _put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        body = parts(data)

        def put() -> None:
            url = self._urls.put_url(check_key(key))
            with self._request("PUT", key, url, {"If-None-Match": "*"}, body) as response:
                if response.status not in {200, 201, 204}:
                    raise _error(response, key, "PUT")
                response.read(_ERROR_BYTES)

        self._with_fresh_url(key, put)

    def _get(self, key: str, max_bytes: int) -> bytes:
        with self._request("GET", key, self._urls.get_url(check_key(key)), {}) as response:
            if response.status != 200:
                raise _error(response, key, "GET")
            length = response.length
            if length is not None and length > max_bytes:
                raise IntegrityError(f"object {key} holds {length} bytes, at most {max_bytes} are expected", key)
            content = response.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise IntegrityError(f"object {key} holds more than {max_bytes} bytes", key)
            if length is not None and len(content) != length:
                raise StoreUnavailable(f"the store's response for {key!r} ended early; try again")
            response.read(1)
            return content

    def _get_into(self, key: str, offset: int, view: memoryview) -> None:
        wanted = {"Range": f"bytes={offset}-{offset + len(view) - 1}"}
        with self._request("GET", key, self._urls.get_url(check_key(key)), wanted) as response:
            if response.status == 416:
                raise IntegrityError(f"object {key} ends before byte {offset}", key)
            if response.status != 206:
                raise _error(response, key, "GET")
            if not response.headers.get("content-range", "").startswith(f"bytes {offset}-"):
                raise StoreUnavailable(f"the store sent another range of {key!r} than requested; try again")
            announced = response.length
            done = response.readinto(view)
            if announced is not None and done < min(announced, len(view)):
                raise StoreUnavailable(f"the store's response for {key!r} ended early; try again")
            if done < len(view):
                raise IntegrityError(
                    f"object {key} ends at byte {offset + done}, {len(view) - done} more are expected", key
                )
            response.read(1)

    def _head(self, key: str) -> ObjectInfo:
        with self._request("GET", key, self._urls.get_url(check_key(key)), {"Range": "bytes=0-0"}) as response:
            total = response.headers.get("content-range", "").rpartition("/")[2]
            if response.status not in {206, 416}:
                raise _error(response, key, "GET")
            response.read(_ERROR_BYTES)
            if response.status == 416:
                return ObjectInfo(key, 0)
            if not total.isdecimal():
                raise StoreUnavailable(f"the store did not report the size of {key!r}; try again")
            return ObjectInfo(key, int(total))

    def _with_fresh_url(self, key: str, call: Callable[[], T]) -> T:
        """Call, and once more with a new URL if access is denied: the URL or its signing key may have expired."""
        try:
            return call()
        except StoreDenied:
            self._urls.forget(key)
            return call()

    @contextmanager
    def _request(
        self, method: str, key: str, url: str, headers: Mapping[str, str], body: Sequence[memoryview] = ()
    ) -> Iterator[Response]:
        self._require_uninterrupted()
        try:
            with self._connections.request(method, url, headers, body, since=self._active.since) as response:
                yield response
        except SavepointError:
            raise
        except ssl.SSLCertVerificationError as error:
            raise StoreMisconfigured(
                f"the store's certificate is not trusted: {error.verify_message}; give Savepoint the CA it is signed by"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self._require_uninterrupted()
            what = str(error) or type(error).__name__
            raise StoreUnavailable(f"cannot reach the store to {method} {key!r}: {what}; try again") from error


def _error(response: Response, key: str, method: str) -> SavepointError:
    return s3_error(response.status, error_code(response.read(_ERROR_BYTES)), key, method)
