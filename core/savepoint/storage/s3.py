"""A bucket as a store, for processes that hold its credentials. The only module that uses minio.

Conditional writes go through a URL that ``signature`` presigns, because minio drops ``If-None-Match``. This module does
not retry (``wrapper.Retrying`` does) and does not follow redirects.
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
from minio.lifecycleconfig import Rule

from savepoint.errors import IntegrityError, ObjectMissing, SavepointError, StoreMisconfigured, StoreUnavailable
from savepoint.storage.connection import ssl_context
from savepoint.storage.s3_errors import error_code, s3_error
from savepoint.storage.signature import Presigner, S3Config
from savepoint.storage.store import Buffer, ObjectInfo, check_key, check_prefix, is_key, parts

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
POOL_SIZE = 32

_PUT_EXPIRES_SECONDS = 900
_PIECE_BYTES = 256 << 10
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects cannot be read until a person restores them."""


class S3Store:
    """The objects below ``config.prefix`` of a bucket, as a FolderStore.

    Methods take, return and raise what the protocols in ``store`` document.
    """

    def __init__(self, config: S3Config, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Open no connection yet.

        Args:
            config: The bucket, its address and its credentials.
            now: The current time, aware and in UTC, for signatures.
        """
        self._config, self._presigner = config, Presigner(config, now)
        self._http = _connection_pool(config)
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
        with _translate_errors(key, "PUT"):
            response = self._http.request("PUT", url, body=body, headers={"If-None-Match": "*"})
        if response.status not in {200, 201, 204}:
            raise s3_error(response.status, error_code(response.data), key, "PUT")

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read the whole object."""
        check_key(key)
        with _translate_errors(key, "GET"), self._open_response(key) as response:
            length = int(response.headers.get("Content-Length", "-1"))
            if length > max_bytes:
                raise IntegrityError(f"object {key} holds {length} bytes, at most {max_bytes} are expected", key)
            content = response.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise IntegrityError(f"object {key} holds more than {max_bytes} bytes", key)
            if length >= 0 and len(content) != length:
                raise StoreUnavailable(f"the store's response for {key!r} ended early; try again")
            return content

    def get_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range into ``target``."""
        check_key(key)
        view, done = target.cast("B"), 0
        if not len(view):
            return
        try:
            with _translate_errors(key, "GET"), self._open_response(key, offset, len(view)) as response:
                while done < len(view):
                    piece = response.read(min(_PIECE_BYTES, len(view) - done))
                    if not piece:
                        break
                    view[done : done + len(piece)] = piece
                    done += len(piece)
                announced = int(response.headers.get("Content-Length", "-1"))
        except _BeyondEnd as error:
            raise IntegrityError(f"object {key} ends before byte {offset}", key) from error
        if done < len(view):
            if announced >= 0 and done < announced:
                raise StoreUnavailable(f"the store's response for {key!r} ended early; try again")
            raise IntegrityError(
                f"object {key} ends at byte {offset + done}, {len(view) - done} more are expected", key
            )

    def head(self, key: str) -> ObjectInfo | None:
        """Look up size and modification time.

        A 404 response to HEAD has no body that gives its cause, so the bucket is checked before None is returned.
        """
        full = self._full(key)
        try:
            with _translate_errors(key, "HEAD"):
                found = self._client.stat_object(self._config.bucket, full)
        except ObjectMissing:
            self._require_bucket()
            return None
        return ObjectInfo(key, cast(int, found.size), found.last_modified)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List the objects below the prefix."""
        full = self._config.prefix + check_prefix(prefix)
        with _translate_errors(prefix, "LIST"):
            for each in self._client.list_objects(self._config.bucket, prefix=full, recursive=True):
                if each.object_name is not None:
                    key = each.object_name.removeprefix(self._config.prefix)
                    yield ObjectInfo(key, cast(int, each.size), each.last_modified)

    def folders(self, prefix: str) -> Sequence[str]:
        """List the folders directly below the prefix, by a listing with a delimiter."""
        full = self._config.prefix + check_prefix(prefix)
        with _translate_errors(prefix, "LIST"):
            found = [each.object_name or "" for each in self._client.list_objects(self._config.bucket, prefix=full)]
        names = (name.removeprefix(full).removesuffix("/") for name in found if name.endswith("/"))
        return sorted(name for name in names if is_key(name))

    def delete(self, key: str) -> None:
        """Delete the object."""
        full = self._full(key)
        try:
            with _translate_errors(key, "DELETE"):
                self._client.remove_object(self._config.bucket, full)
        except ObjectMissing:
            self._require_bucket()

    def expiring_rules(self) -> Sequence[str]:
        """Describe the bucket's lifecycle rules that apply to this store's objects; see ``ExpiringStore``."""
        with _translate_errors(self._config.bucket, "GET lifecycle of"):
            found = self._client.get_bucket_lifecycle(self._config.bucket)
        effects = ((rule, _effect(rule, self._config.prefix)) for rule in (found.rules if found is not None else ()))
        return [f"rule {rule.rule_id or 'without ID'} {effect}" for rule, effect in effects if effect]

    def _full(self, key: str) -> str:
        return self._config.prefix + check_key(key)

    def _require_bucket(self) -> None:
        with _translate_errors(self._config.bucket, "HEAD"):
            exists = self._client.bucket_exists(self._config.bucket)
        if not exists:
            raise StoreMisconfigured(f"bucket {self._config.bucket!r} does not exist; create it, or correct its name")

    @contextmanager
    def _open_response(self, key: str, offset: int = 0, length: int = 0) -> Iterator[urllib3.BaseHTTPResponse]:
        response = self._client.get_object(self._config.bucket, self._full(key), offset=offset, length=length)
        try:
            yield response
        except BaseException:
            response.close()  # a connection whose body was not read to its end must not be reused
            raise
        finally:
            response.release_conn()


def _effect(rule: Rule, prefix: str) -> str:
    """Return what the rule does to current objects below the prefix that makes them unreadable; empty if nothing.

    Savepoint's objects have no tags, and noncurrent versions are objects that Savepoint has deleted.
    """
    limits = rule.rule_filter
    joined = limits.and_operator if limits is not None else None
    if rule.status != "Enabled" or (limits is not None and limits.tag) or (joined is not None and joined.tags):
        return ""
    covered = (joined.prefix if joined is not None else limits.prefix if limits is not None else "") or ""
    if not (covered.startswith(prefix) or prefix.startswith(covered)):
        return ""
    expiration, transition = rule.expiration, rule.transition
    if expiration is not None and (expiration.days or expiration.date):
        return f"deletes objects {_when(expiration.days)}"
    if transition is not None and (transition.storage_class or "").upper() in _ARCHIVES:
        return f"moves objects to {transition.storage_class} {_when(transition.days)}"
    return ""


def _when(days: int | None) -> str:
    return f"after {days} days" if days else "at a date"


class _BeyondEnd(Exception):
    pass


@contextmanager
def _translate_errors(key: str, method: str) -> Iterator[None]:
    try:
        yield
    except (SavepointError, _BeyondEnd):
        raise
    except S3Error as error:
        status = error.response.status
        if status == 416 or error.code == "InvalidRange":
            raise _BeyondEnd from error
        raise s3_error(status, error.code or "", key, method) from error
    except InvalidResponseError as error:
        raise s3_error(error._code, error_code((error._body or "").encode()), key, method) from error
    except ServerError as error:
        raise s3_error(error.status_code, "", key, method) from error
    except urllib3.exceptions.SSLError as error:
        raise StoreMisconfigured(
            f"the store's certificate is not trusted: {error}; give Savepoint the CA it is signed by"
        ) from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError, ValueError, ElementTree.ParseError) as error:
        raise StoreUnavailable(f"cannot reach the store to {method} {key!r}: {error}; try again") from error


def _connection_pool(config: S3Config) -> urllib3.PoolManager:
    return urllib3.PoolManager(
        num_pools=4,
        maxsize=POOL_SIZE,
        block=False,
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=urllib3.Retry(total=False, redirect=False),
        ssl_context=ssl_context(config.ca_pem) if config.secure else None,
    )
