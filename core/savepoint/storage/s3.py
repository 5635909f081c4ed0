"""The door to minio: a bucket as a store, for whoever holds its keys.

Conditional creation goes through our own presigned URL, because minio drops ``If-None-Match``. No retries here
(``wrapper.Retrying``), no redirects, no listing that correctness could rest on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import cast
from urllib.parse import urlsplit
from xml.etree import ElementTree

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from savepoint.errors import IntegrityError, ObjectMissing, SavepointError, StoreMisconfigured, StoreUnavailable
from savepoint.storage.answer import code_of, fault
from savepoint.storage.connection import trust
from savepoint.storage.signature import Presigner, S3Config
from savepoint.storage.store import Buffer, ObjectInfo, check_key, check_prefix, is_key, parts

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
POOL_SIZE = 32

_PUT_EXPIRES_SECONDS = 900
_PIECE_BYTES = 256 << 10


class S3Store:
    """The objects below ``config.prefix`` of a bucket."""

    def __init__(self, config: S3Config, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._config, self._presigner = config, Presigner(config, now)
        self._http = _pool(config)
        endpoint = urlsplit(config.endpoint)
        self._client = Minio(
            endpoint.netloc,
            access_key=config.access_key,
            secret_key=config.secret_key,
            session_token=config.session_token,
            secure=config.secure,
            region=config.region,
            http_client=self._http,
        )
        if config.addressing == "virtual":
            self._client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        else:
            self._client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"S3Store({self._config!r})"

    def close(self) -> None:
        """Close idle connections."""
        for key in self._http.pools.keys():  # noqa: SIM118 - this container cannot be iterated
            pool = self._http.pools.get(key)
            if pool is not None:
                pool.close()
        self._http.clear()

    def put_new(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Create the object with one conditional PUT."""
        views = parts(data)
        body = cast(bytes, views[0]) if len(views) == 1 else b"".join(views)  # urllib3 takes any buffer
        url = self._presigner.presign_put(key, _PUT_EXPIRES_SECONDS)
        with _translated(key, "PUT"):
            answer = self._http.request("PUT", url, body=body, headers={"If-None-Match": "*"})
        if answer.status not in {200, 201, 204}:
            raise fault(answer.status, code_of(answer.data), key, "PUT")

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object."""
        check_key(key)
        with _translated(key, "GET"), self._answer(key) as answer:
            length = int(answer.headers.get("Content-Length", "-1"))
            if length > max_bytes:
                raise IntegrityError(f"object {key} holds {length} bytes, at most {max_bytes} are expected", key)
            content = answer.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise IntegrityError(f"object {key} holds more than {max_bytes} bytes", key)
            if length >= 0 and len(content) != length:
                raise StoreUnavailable(f"the store's answer for {key!r} was cut off; try again")
            return content

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill ``target`` from ``offset``."""
        check_key(key)
        view, done = target.cast("B"), 0
        if not len(view):
            return
        try:
            with _translated(key, "GET"), self._answer(key, offset, len(view)) as answer:
                while done < len(view):
                    piece = answer.read(min(_PIECE_BYTES, len(view) - done))
                    if not piece:
                        break
                    view[done : done + len(piece)] = piece
                    done += len(piece)
                promised = int(answer.headers.get("Content-Length", "-1"))
        except _BeyondEnd as error:
            raise IntegrityError(f"object {key} ends before byte {offset}", key) from error
        if done < len(view):
            if promised >= 0 and done < promised:
                raise StoreUnavailable(f"the store's answer for {key!r} was cut off; try again")
            raise IntegrityError(
                f"object {key} ends at byte {offset + done}, {len(view) - done} more are expected", key
            )

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time. An answer 404 has no body that says why, so the bucket is asked for before None is said."""
        full = self._full(key)
        try:
            with _translated(key, "HEAD"):
                found = self._client.stat_object(self._config.bucket, full)
        except ObjectMissing:
            self._require_bucket()
            return None
        return ObjectInfo(key, cast(int, found.size), found.last_modified)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the prefix."""
        full = self._config.prefix + check_prefix(prefix)
        with _translated(prefix, "LIST"):
            for each in self._client.list_objects(self._config.bucket, prefix=full, recursive=True):
                if each.object_name is not None:
                    key = each.object_name.removeprefix(self._config.prefix)
                    yield ObjectInfo(key, cast(int, each.size), each.last_modified)

    def folders(self, prefix: str) -> Sequence[str]:
        """The names directly below the prefix that go on, asked for with a delimiter."""
        full = self._config.prefix + check_prefix(prefix)
        with _translated(prefix, "LIST"):
            found = [each.object_name or "" for each in self._client.list_objects(self._config.bucket, prefix=full)]
        names = (name.removeprefix(full).removesuffix("/") for name in found if name.endswith("/"))
        return sorted(name for name in names if is_key(name))

    def delete(self, key: str) -> None:
        """Remove the object."""
        full = self._full(key)
        try:
            with _translated(key, "DELETE"):
                self._client.remove_object(self._config.bucket, full)
        except ObjectMissing:
            self._require_bucket()

    def _full(self, key: str) -> str:
        return self._config.prefix + check_key(key)

    def _require_bucket(self) -> None:
        with _translated(self._config.bucket, "HEAD"):
            there = self._client.bucket_exists(self._config.bucket)
        if not there:
            raise StoreMisconfigured(f"there is no bucket {self._config.bucket!r}; create it, or correct its name")

    @contextmanager
    def _answer(self, key: str, offset: int = 0, length: int = 0) -> Iterator[urllib3.BaseHTTPResponse]:
        answer = self._client.get_object(self._config.bucket, self._full(key), offset=offset, length=length)
        try:
            yield answer
        except BaseException:
            answer.close()  # a body that was not read to its end must not go back to the pool
            raise
        finally:
            answer.release_conn()


class _BeyondEnd(Exception):
    pass


@contextmanager
def _translated(key: str, doing: str) -> Iterator[None]:
    try:
        yield
    except (SavepointError, _BeyondEnd):
        raise
    except S3Error as error:
        status = error.response.status
        if status == 416 or error.code == "InvalidRange":
            raise _BeyondEnd from error
        raise fault(status, error.code or "", key, doing) from error
    except InvalidResponseError as error:
        raise fault(error._code, code_of((error._body or "").encode()), key, doing) from error
    except ServerError as error:
        raise fault(error.status_code, "", key, doing) from error
    except urllib3.exceptions.SSLError as error:
        raise StoreMisconfigured(
            f"the store's certificate is not trusted: {error}; give Savepoint the CA it is signed by"
        ) from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError, ValueError, ElementTree.ParseError) as error:
        raise StoreUnavailable(f"the store could not be asked to {doing} {key!r}: {error}; try again") from error


def _pool(config: S3Config) -> urllib3.PoolManager:
    return urllib3.PoolManager(
        num_pools=4,
        maxsize=POOL_SIZE,
        block=False,
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=urllib3.Retry(total=False, redirect=False),
        ssl_context=trust(config.ca_pem) if config.secure else None,
    )
