"""A store for those without keys: every object by a URL that somebody else has signed for it.

What a pod uses. It can neither list nor delete, because no URL lets it. A URL is asked for anew at each attempt, so an
expired one is replaced by its source. No URL appears in an error: it is a credential.
"""

import http.client
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from savepoint.errors import (
    IntegrityError,
    ObjectMissing,
    SavepointError,
    StoreDenied,
    StoreMisconfigured,
    StoreUnavailable,
)
from savepoint.storage.answer import code_of, fault
from savepoint.storage.connection import Answer, Connections
from savepoint.storage.retry import Retry
from savepoint.storage.store import Buffer, ObjectInfo, check_key, parts

T = TypeVar("T")

_ERROR_BYTES = 8192


class UrlSource(Protocol):
    """Who hands out URLs. May block, and raises Unavailable when it cannot."""

    def put_url(self, key: str) -> str:
        """A URL that creates the object once."""
        ...

    def get_url(self, key: str) -> str:
        """A URL that reads the object."""
        ...

    def forget(self, key: str) -> None:
        """The store has refused this object's URL, which is not to be handed out again."""
        ...


class PresignedStore:
    """A BlobReader and BlobWriter over presigned URLs, with its own retries."""

    def __init__(
        self,
        urls: UrlSource,
        *,
        ca_pem: str | None = None,
        retry: Retry | None = None,
        connections: Connections | None = None,
    ) -> None:
        """``ca_pem``: certificates to trust instead of the system's; ``connections`` for other time bounds."""
        self._urls, self._retry = urls, retry or Retry()
        self._connections = connections or Connections(ca_pem)

    def __repr__(self) -> str:
        return "PresignedStore()"

    def close(self) -> None:
        """Close idle connections."""
        self._connections.close()

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object; one with our bytes, found after a lost answer, is our own success."""
        self._retry.put_new(self._put, self, key, data)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object."""
        return self._retry.run(lambda: self._renewed(key, lambda: self._get(key, max_bytes)))

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill ``target`` from ``offset``."""
        view = target.cast("B")
        if len(view):
            self._retry.run(lambda: self._renewed(key, lambda: self._get_into(key, offset, view)))

    def head(self, key: str) -> ObjectInfo | None:
        """Size of the object, by a read of its first byte: a URL that reads does not let one ask for less."""
        try:
            return self._retry.run(lambda: self._renewed(key, lambda: self._head(key)))
        except ObjectMissing:
            return None

    def _put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        body = parts(data)

        def put() -> None:
            url = self._urls.put_url(check_key(key))
            with self._asked("PUT", key, url, {"If-None-Match": "*"}, body) as answer:
                if answer.status not in {200, 201, 204}:
                    raise _fault(answer, key, "PUT")
                answer.read(_ERROR_BYTES)

        self._renewed(key, put)

    def _get(self, key: str, max_bytes: int) -> bytes:
        with self._asked("GET", key, self._urls.get_url(check_key(key)), {}) as answer:
            if answer.status != 200:
                raise _fault(answer, key, "GET")
            length = answer.length
            if length is not None and length > max_bytes:
                raise IntegrityError(f"object {key} holds {length} bytes, at most {max_bytes} are expected", key)
            content = answer.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise IntegrityError(f"object {key} holds more than {max_bytes} bytes", key)
            if length is not None and len(content) != length:
                raise StoreUnavailable(f"the store's answer for {key!r} was cut off; try again")
            answer.read(1)
            return content

    def _get_into(self, key: str, offset: int, view: memoryview) -> None:
        wanted = {"Range": f"bytes={offset}-{offset + len(view) - 1}"}
        with self._asked("GET", key, self._urls.get_url(check_key(key)), wanted) as answer:
            if answer.status == 416:
                raise IntegrityError(f"object {key} ends before byte {offset}", key)
            if answer.status != 206:
                raise _fault(answer, key, "GET")
            if not answer.headers.get("content-range", "").startswith(f"bytes {offset}-"):
                raise StoreUnavailable(f"the store answered with another range of {key!r} than asked; try again")
            promised = answer.length
            done = answer.readinto(view)
            if promised is not None and done < min(promised, len(view)):
                raise StoreUnavailable(f"the store's answer for {key!r} was cut off; try again")
            if done < len(view):
                raise IntegrityError(
                    f"object {key} ends at byte {offset + done}, {len(view) - done} more are expected", key
                )
            answer.read(1)

    def _head(self, key: str) -> ObjectInfo:
        with self._asked("GET", key, self._urls.get_url(check_key(key)), {"Range": "bytes=0-0"}) as answer:
            total = answer.headers.get("content-range", "").rpartition("/")[2]
            if answer.status not in {206, 416}:
                raise _fault(answer, key, "GET")
            answer.read(_ERROR_BYTES)
            if answer.status == 416:
                return ObjectInfo(key, 0)
            if not total.isdecimal():
                raise StoreUnavailable(f"the store did not say how large {key!r} is; try again")
            return ObjectInfo(key, int(total))

    def _renewed(self, key: str, call: Callable[[], T]) -> T:
        """Once more after a refusal: the URL may have expired, or what signed it may have been replaced meanwhile."""
        try:
            return call()
        except StoreDenied:
            self._urls.forget(key)
            return call()

    @contextmanager
    def _asked(
        self, method: str, key: str, url: str, headers: Mapping[str, str], body: Sequence[memoryview] = ()
    ) -> Iterator[Answer]:
        try:
            with self._connections.request(method, url, headers, body) as answer:
                yield answer
        except SavepointError:
            raise
        except ssl.SSLCertVerificationError as error:
            raise StoreMisconfigured(
                f"the store's certificate is not trusted: {error.verify_message}; give Savepoint the CA it is signed by"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise StoreUnavailable(f"the store could not be asked to {method} {key!r}: {what}; try again") from error


def _fault(answer: Answer, key: str, doing: str) -> SavepointError:
    return fault(answer.status, code_of(answer.read(_ERROR_BYTES)), key, doing)
