"""The S3 store, its presigned URLs, and the presigned store, against real servers."""

import http.client
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from minio.commonconfig import Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from savepoint.errors import ObjectExists, StoreDenied, StoreMisconfigured, StoreUnavailable
from savepoint.storage.presigned import PresignedStore, UrlSource
from savepoint.storage.probe import probe
from savepoint.storage.retry import Retry
from savepoint.storage.s3 import S3Store
from savepoint.storage.signature import Presigner, S3Config
from savepoint.storage.store import ObjectStore
from savepoint.storage.wrapper import Prefixed

from tests.contracts.store_contract import BlobContract, StoreContract
from tests.servers.s3 import S3Server

BUCKET = "savepoint-tests"
ONCE = Retry(attempts=1)


def _now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def config(s3_server: S3Server) -> S3Config:
    return s3_server.config(BUCKET)


@pytest.fixture
def s3(config: S3Config) -> Iterator[S3Store]:
    store = S3Store(config)
    yield store
    store.close()


Make = Callable[[UrlSource], PresignedStore]


@pytest.fixture
def presigned() -> Iterator[Make]:
    with ExitStack() as stack:

        def make(urls: UrlSource) -> PresignedStore:
            return stack.enter_context(closing(PresignedStore(urls, retry=ONCE)))

        yield make


@dataclass(frozen=True)
class Urls:
    presigner: Presigner

    def put_url(self, key: str) -> str:
        return self.presigner.presign_put(key, 600)

    def get_url(self, key: str) -> str:
        return self.presigner.presign_get(key, 600)

    def forget(self, key: str) -> None:
        """Do nothing: no URL is cached."""


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, s3: S3Store) -> ObjectStore:
        return s3

    def test_more_than_one_page_is_listed(self, store: ObjectStore) -> None:
        for number in range(1005):
            store.put_new(f"page/{number}", b"x")
        assert len({info.key for info in store.list("page/")}) == 1005


class TestPresignedStore(BlobContract):
    @pytest.fixture
    def store(self, config: S3Config, presigned: Make) -> PresignedStore:
        return presigned(Urls(Presigner(config, _now)))


def test_the_probe_passes(s3: S3Store) -> None:
    probe(s3, secrets.token_hex(16))
    assert list(s3.list("probe/")) == []


def test_a_put_url_without_the_condition_is_refused(config: S3Config) -> None:
    url = urlsplit(Presigner(config, _now).presign_put("key", 60))
    connection = http.client.HTTPConnection(url.netloc)
    connection.request("PUT", f"{url.path}?{url.query}", body=b"x")
    status = connection.getresponse().status
    connection.close()
    assert status in {400, 403}


def test_a_put_url_cannot_replace(config: S3Config, presigned: Make, s3: S3Store) -> None:
    s3.put_new("key", b"first")
    with pytest.raises(ObjectExists):
        presigned(Urls(Presigner(config, _now))).put_new("key", b"second")
    assert s3.get("key", max_bytes=10) == b"first"


def test_a_url_is_for_one_key_only(config: S3Config, presigned: Make) -> None:
    class UrlsOfAnotherKey(Urls):
        def put_url(self, key: str) -> str:
            return super().put_url(key).replace("right", "wrong")

    with pytest.raises(StoreDenied):
        presigned(UrlsOfAnotherKey(Presigner(config, _now))).put_new("right", b"x")


def test_an_expired_url_is_refused(config: S3Config, presigned: Make) -> None:
    past = Presigner(config, lambda: datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(StoreDenied):
        presigned(Urls(past)).get("key", max_bytes=10)


def test_a_missing_bucket_is_never_a_missing_object(config: S3Config, presigned: Make) -> None:
    missing = replace(config, bucket="no-such-bucket")
    store = S3Store(missing)
    with pytest.raises(StoreMisconfigured):
        store.head("key")
    with pytest.raises(StoreMisconfigured):
        store.get("key", max_bytes=10)
    with pytest.raises(StoreMisconfigured):
        store.put_new("key", b"x")
    with pytest.raises(StoreMisconfigured):
        list(store.list(""))
    with pytest.raises(StoreMisconfigured):
        presigned(Urls(Presigner(missing, _now))).head("key")


def test_wrong_keys_are_denied_not_missing(config: S3Config) -> None:
    store = S3Store(replace(config, secret_key="wrong"))
    for call in (
        lambda: store.head("key"),
        lambda: store.get("key", max_bytes=10),
        lambda: store.put_new("key", b"x"),
        lambda: list(store.list("")),
        lambda: store.delete("key"),
    ):
        with pytest.raises(StoreDenied):
            call()


def test_an_unreachable_server_is_unavailable(config: S3Config, presigned: Make) -> None:
    unreachable = replace(config, endpoint="http://127.0.0.1:9")
    store, signed = S3Store(unreachable), presigned(Urls(Presigner(unreachable, _now)))
    for call in (
        lambda: store.head("key"),
        lambda: store.get("key", max_bytes=10),
        lambda: store.put_new("key", b"x"),
        lambda: list(store.list("")),
        lambda: signed.head("key"),
        lambda: signed.put_new("key", b"x"),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert "Signature" not in str(caught.value)


def test_connections_are_reused(s3_minio: S3Server, presigned: Make) -> None:
    """MinIO keeps connections; versitygw closes each after its answer."""
    store = presigned(Urls(Presigner(s3_minio.config(BUCKET), _now)))
    store.put_new("key", bytes(100))
    for _ in range(5):
        assert store.get("key", max_bytes=100) == bytes(100)
        store.get_into("key", 10, memoryview(bytearray(20)))
        assert store.head("absent") is None
    assert sum(len(idle) for idle in store._connections._idle.values()) == 1


def test_prefixed_s3_keeps_agents_apart(s3: S3Store) -> None:
    one, two = Prefixed(s3, "default/one/"), Prefixed(s3, "default/one-more/")
    one.put_new("key", b"1")
    assert [info.key for info in one.list("")] == ["key"]
    assert list(two.list("")) == []


def test_lifecycle_rules_of_a_real_bucket_are_named(s3_minio: S3Server) -> None:
    bucket = s3_minio.bucket("savepoint-expiring")
    with closing(S3Store(s3_minio.config(bucket))) as store:
        assert store.expiring_rules() == []
        rule = Rule("Enabled", rule_filter=Filter(prefix=""), rule_id="old", expiration=Expiration(days=30))
        s3_minio.client().set_bucket_lifecycle(bucket, LifecycleConfig([rule]))
        assert store.expiring_rules() == ["rule old deletes objects after 30 days"]
