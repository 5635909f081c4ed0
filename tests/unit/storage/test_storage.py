import errno
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
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
)
from savepoint.storage.directory import INCOMING, DirectoryStore, _translate
from savepoint.storage.probe import probe
from savepoint.storage.retry import Retry, has_content
from savepoint.storage.s3_errors import error_code, s3_error
from savepoint.storage.signature import Presigner, S3Config
from savepoint.storage.store import ObjectInfo, check_prefix
from savepoint.storage.wrapper import Meter, Metered, Prefixed, Retrying

from tests.fakes.store import Call, Fault, FaultyStore, MemoryStore, always, at

DOWN = Fault(StoreUnavailable("down"))
LOST = Fault(StoreUnavailable("lost"), applied=True)


class Clock:
    """A clock that advances only when sleep() is called."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def retry(self, **change: Any) -> Retry:
        return Retry(**({"sleep": self.sleep, "clock": lambda: self.now, "jitter": lambda: 1.0} | change))


class TestDirectory:
    @pytest.fixture
    def store(self, tmp_path: Path) -> DirectoryStore:
        return DirectoryStore(tmp_path / "store", create=True)

    def test_incomplete_objects_are_neither_left_nor_listed(self, store: DirectoryStore, tmp_path: Path) -> None:
        store.put_new("a/b", b"x")
        with pytest.raises(ObjectExists):
            store.put_new("a/b", b"y")
        assert list((tmp_path / "store" / INCOMING).iterdir()) == []
        (tmp_path / "store" / INCOMING / "torn").write_bytes(b"half")
        assert [info.key for info in store.list("")] == ["a/b"]
        with pytest.raises(ValueError, match="not an object key"):
            store.get(f"{INCOMING}/torn", max_bytes=10)

    def test_a_full_disk_is_reported_as_no_space(self, store: DirectoryStore, tmp_path: Path) -> None:
        """A limit on the size of files simulates a full disk."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
            with pytest.raises(NoSpace, match="large"):
                store.put_new("large", bytes(2 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert store.head("large") is None
        assert list((tmp_path / "store" / INCOMING).iterdir()) == []
        store.put_new("large", bytes(2 << 20))

    def test_a_missing_root_is_not_reported_as_a_missing_object(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path / "unmounted")
        for call in (
            lambda: store.head("a"),
            lambda: store.get("a", max_bytes=1),
            lambda: store.get_into("a", 0, memoryview(bytearray(1))),
            lambda: store.put_new("a", b""),
            lambda: list(store.list("")),
            lambda: store.delete("a"),
        ):
            with pytest.raises(StoreMisconfigured, match="unmounted"):
                call()

    def test_a_file_in_place_of_a_folder_is_refused(self, store: DirectoryStore) -> None:
        store.put_new("a", b"object")
        with pytest.raises(StoreMisconfigured):
            store.put_new("a/b", b"x")

    def test_links_and_fifos_are_not_objects(self, store: DirectoryStore, tmp_path: Path) -> None:
        (tmp_path / "store" / "link").symlink_to("/etc/passwd")
        os.mkfifo(tmp_path / "store" / "fifo")
        assert store.head("link") is None
        assert list(store.list("")) == []
        with pytest.raises(StoreMisconfigured):
            store.get("link", max_bytes=1 << 20)

    def test_only_folders_that_a_key_can_name_are_listed(self, store: DirectoryStore, tmp_path: Path) -> None:
        for key in ("savepoint.json", "b/x/1", "a/2", "b/3"):
            store.put_new(key, b"")
        (tmp_path / "store" / "not a key").mkdir()
        assert store.folders("") == ["a", "b"]
        assert (store.folders("b/"), store.folders("a/"), store.folders("none/")) == (["x"], [], [])

    def test_a_folder_that_vanishes_while_it_is_listed_is_left_out(self, store: DirectoryStore, tmp_path: Path) -> None:
        store.put_new("a/1", b"")
        store.put_new("b/2", b"")
        listing = store.list("")
        assert next(listing).key == "b/2"
        (tmp_path / "store/a/1").unlink()
        (tmp_path / "store/a").rmdir()
        assert list(listing) == []

    @pytest.mark.parametrize(("number", "kind"), [(errno.EPERM, StoreMisconfigured), (errno.EIO, StoreUnavailable)])
    def test_a_file_system_without_hard_links_is_refused(
        self, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[SavepointError]
    ) -> None:
        def link(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(kind):
            store.put_new("key", b"x")
        assert store.head("key") is None

    def test_the_repr_of_a_directory_store_names_the_directory(self, store: DirectoryStore) -> None:
        assert "store" in repr(store)

    @pytest.mark.parametrize(
        ("number", "kind"),
        [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EACCES, StoreDenied), (errno.EPERM, StoreDenied),
         (errno.EROFS, StoreDenied), (errno.ENOENT, StoreMisconfigured), (errno.EIO, StoreUnavailable),
         (errno.ESTALE, StoreUnavailable), (errno.EMFILE, StoreUnavailable)],
    )  # fmt: skip
    def test_errors_of_the_disk_are_translated(self, number: int, kind: type[SavepointError]) -> None:
        error = _translate(OSError(number, os.strerror(number)), "key", Path("/root"))
        assert type(error) is kind
        assert "key" in str(error)


class TestRetry:
    def test_transient_faults_are_retried(self) -> None:
        clock, memory = Clock(), MemoryStore()
        store = Retrying(FaultyStore(memory, at({1: DOWN, 2: DOWN})), clock.retry())
        store.put_new("a", b"x")
        assert clock.slept == [0.2, 0.4]

    def test_retries_end_after_the_last_attempt(self) -> None:
        clock = Clock()
        faulty = FaultyStore(MemoryStore(), always("get", DOWN))
        with pytest.raises(StoreUnavailable):
            Retrying(faulty, clock.retry()).get("a", max_bytes=1)
        assert len(faulty.calls) == 6
        assert clock.slept == [0.2, 0.4, 0.8, 1.6, 3.2]

    def test_retries_end_within_the_total_time(self) -> None:
        clock = Clock()
        faulty = FaultyStore(MemoryStore(), always("head", DOWN))
        with pytest.raises(StoreUnavailable):
            Retrying(faulty, clock.retry(attempts=1000, total_seconds=30)).head("a")
        assert clock.now <= 30

    def test_jitter_only_shortens_the_pause(self) -> None:
        clock = Clock()
        with pytest.raises(StoreUnavailable):
            Retrying(FaultyStore(MemoryStore(), always("delete", DOWN)), clock.retry(jitter=lambda: 0.0)).delete("a")
        assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6]

    @pytest.mark.parametrize("error", [StoreDenied("no"), StoreMisconfigured("no"), ObjectMissing("no"), NoSpace("no")])
    def test_permanent_errors_are_not_retried(self, error: SavepointError) -> None:
        clock = Clock()
        with pytest.raises(type(error)):
            Retrying(FaultyStore(MemoryStore(), always("get", Fault(error))), clock.retry()).get("a", max_bytes=1)
        assert clock.slept == []

    def test_a_policy_without_attempts_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            Retry(attempts=0).run(lambda: None)

    def test_an_object_with_our_bytes_after_a_lost_response_is_a_success(self) -> None:
        memory = MemoryStore()
        store = Retrying(FaultyStore(memory, at({1: LOST})), Clock().retry())
        store.put_new("a", [b"con", b"tent"])
        assert memory.objects["a"] == b"content"

    def test_another_object_after_a_lost_response_is_a_conflict(self) -> None:
        memory = MemoryStore()
        memory.put_new("a", b"theirs!")
        with pytest.raises(ObjectExists):
            Retrying(FaultyStore(memory, at({1: DOWN})), Clock().retry()).put_new("a", b"content")

    def test_an_existing_object_is_a_conflict_even_with_equal_bytes(self) -> None:
        memory = MemoryStore()
        memory.put_new("a", b"content")
        with pytest.raises(ObjectExists):
            Retrying(memory, Clock().retry()).put_new("a", b"content")

    def test_reads_and_listings_are_retried(self) -> None:
        memory = MemoryStore()
        memory.put_new("a", b"0123")
        store = Retrying(FaultyStore(memory, at({1: LOST, 3: DOWN})), Clock().retry())
        target = bytearray(2)
        store.get_into("a", 1, memoryview(target))
        assert target == b"12"
        assert [info.key for info in store.list("")] == ["a"]
        assert list(store.list("b")) == []
        assert "Retrying" in repr(store)

    @pytest.mark.parametrize(
        ("stored", "same"),
        [(b"content", True), (b"Content", False), (b"contents", False), (None, False), (bytes(7), False)],
    )
    def test_the_content_of_an_object_is_compared(self, stored: bytes | None, same: bool) -> None:
        memory = MemoryStore()
        if stored is not None:
            memory.put_new("a", stored)
        assert has_content(memory, "a", [b"con", b"", b"tent"]) is same

    def test_the_content_of_large_and_empty_objects_is_compared(self) -> None:
        memory = MemoryStore()
        large = bytes(range(256)) * 20_000
        memory.put_new("large", large)
        memory.put_new("empty", b"")
        assert has_content(memory, "large", large)
        assert not has_content(memory, "large", large[:-1] + b"x")
        assert has_content(memory, "empty", b"")

    def test_an_object_deleted_during_the_comparison_counts_as_different(self) -> None:
        memory = MemoryStore()
        memory.put_new("a", b"x")
        assert not has_content(FaultyStore(memory, always("get_into", Fault(ObjectMissing("gone")))), "a", b"x")


class TestProbe:
    def test_a_store_that_supports_conditional_writes_passes(self) -> None:
        store = MemoryStore()
        probe(store, "f" * 32)
        assert store.objects == {}

    def test_a_store_that_ignores_the_condition_is_refused(self) -> None:
        class Unconditional(MemoryStore):
            def put_new(self, key: str, data: Any) -> None:
                self.objects[key] = bytes(data)

        store = Unconditional()
        with pytest.raises(StoreMisconfigured, match="If-None-Match"):
            probe(store, "f" * 32)
        assert store.objects == {}

    def test_a_store_that_lets_an_existing_object_be_replaced_is_refused(self) -> None:
        class SecondPutAccepted(MemoryStore):
            def put_new(self, key: str, data: Any) -> None:
                if data == b"again":
                    return
                super().put_new(key, data)

        with pytest.raises(StoreMisconfigured, match="twice"):
            probe(SecondPutAccepted(), "f" * 32)

    def test_a_store_that_confirms_but_does_not_store_is_refused(self) -> None:
        class Discarding(MemoryStore):
            def put_new(self, key: str, data: Any) -> None:
                pass

        with pytest.raises(StoreMisconfigured, match="did not have it"):
            probe(Discarding(), "f" * 32)

    def test_a_store_that_keeps_other_bytes_than_the_winners_is_refused(self) -> None:
        class OtherBytes(MemoryStore):
            def get(self, key: str, *, max_bytes: int) -> bytes:
                return b"neither"

        with pytest.raises(StoreMisconfigured):
            probe(OtherBytes(), "f" * 32)

    def test_an_unavailable_store_is_reported(self) -> None:
        with pytest.raises(StoreUnavailable, match="none of"):
            probe(FaultyStore(MemoryStore(), always("put_new", DOWN)), "f" * 32)

    def test_lost_responses_are_not_held_against_the_store(self) -> None:
        seen: list[Call] = []

        def first_put(call: Call) -> Fault | None:
            if call.method == "put_new" and not seen:
                seen.append(call)
                return LOST
            return None

        probe(FaultyStore(MemoryStore(), first_put), "f" * 32)
        assert seen


class TestWrappers:
    def test_a_meter_counts_calls_and_bytes(self) -> None:
        meter = Meter()
        store = Metered(MemoryStore(), meter)
        store.put_new("a", [b"12", b"345"])
        store.get("a", max_bytes=5)
        store.get_into("a", 0, memoryview(bytearray(2)))
        store.head("a")
        list(store.list(""))
        store.delete("a")
        assert meter == Meter(calls=6, puts=1, gets=2, bytes_put=5, bytes_got=7)

    def test_a_prefix_must_end_in_a_slash(self) -> None:
        with pytest.raises(ValueError, match="slash"):
            Prefixed(MemoryStore(), "a")
        assert "'a/'" in repr(Prefixed(MemoryStore(), "a/"))
        assert Prefixed(MemoryStore(), "").head("a") is None

    @pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b"])
    def test_valid_prefixes_are_accepted(self, prefix: str) -> None:
        assert check_prefix(prefix) == prefix

    def test_invalid_prefixes_are_refused(self) -> None:
        for prefix in ("/", "../", "a//"):
            with pytest.raises(ValueError, match="not an object key"):
                check_prefix(prefix)

    def test_the_faulty_store_records_its_calls(self) -> None:
        store = FaultyStore(MemoryStore())
        store.put_new("a", b"12")
        assert [call.method for call in store.calls] == ["put_new"]
        assert store.head("a") == ObjectInfo("a", 2, datetime(2026, 1, 1, tzinfo=UTC))
        with pytest.raises(IntegrityError):
            store.get("a", max_bytes=1)


class TestResponses:
    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (412, "PreconditionFailed", ObjectExists), (304, "", ObjectExists), (404, "NoSuchKey", ObjectMissing),
            (404, "NoSuchBucket", StoreMisconfigured), (404, "", StoreMisconfigured),
            (403, "AccessDenied", StoreDenied), (404, "XAdminUserNotFound", StoreDenied),
            (403, "NoSuchKey", StoreDenied), (403, "RequestTimeTooSkewed", StoreDenied), (401, "", StoreDenied),
            (400, "ExpiredToken", StoreDenied), (400, "", StoreMisconfigured), (405, "", StoreMisconfigured),
            (400, "AuthorizationHeaderMalformed", StoreMisconfigured), (301, "PermanentRedirect", StoreMisconfigured),
            (307, "", StoreMisconfigured), (501, "NotImplemented", StoreMisconfigured), (500, "", StoreUnavailable),
            (503, "SlowDown", StoreUnavailable), (429, "", StoreUnavailable), (408, "", StoreUnavailable),
            (409, "ConditionalRequestConflict", StoreUnavailable), (400, "RequestTimeout", StoreUnavailable),
            (507, "XMinioStorageFull", NoSpace), (507, "", NoSpace), (400, "QuotaExceeded", NoSpace),
            (418, "", StoreUnavailable),
            (500, "NoSuchKey", StoreUnavailable),
        ],
    )  # fmt: skip
    def test_responses_are_translated(self, status: int, code: str, kind: type[SavepointError]) -> None:
        error = s3_error(status, code, "some/key", "GET")
        assert type(error) is kind
        assert "some/key" in str(error)

    def test_error_codes_are_parsed(self) -> None:
        assert error_code(b"<?xml?><Error><Code>NoSuchKey</Code></Error>") == "NoSuchKey"
        assert error_code(b"<html>not found</html>") == ""
        assert error_code(b"<Code>" + b"x" * 100 + b"</Code>") == ""


class TestSignature:
    EXAMPLE = S3Config(
        endpoint="https://s3.amazonaws.com",
        bucket="examplebucket",
        access_key="AKIAIOSFODNN7EXAMPLE",
        secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        addressing="virtual",
    )

    def presigner(self, **change: Any) -> Presigner:
        return Presigner(replace(self.EXAMPLE, **change), lambda: datetime(2013, 5, 24, tzinfo=UTC))

    def test_the_signature_equals_the_example_in_the_aws_documentation(self) -> None:
        """Check the presigned GET of the Amazon S3 API reference, "Authenticating Requests: Using Query Parameters"."""
        url = self.presigner().presign_get("test.txt", 86400)
        assert url.startswith("https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
        assert url.endswith("=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")

    def test_a_put_signs_the_if_none_match_header(self) -> None:
        url = self.presigner().presign_put("a/b", 60)
        assert "X-Amz-SignedHeaders=host%3Bif-none-match" in url
        assert "X-Amz-Expires=60" in url

    def test_urls_contain_addressing_port_and_session_token(self) -> None:
        path = self.presigner(endpoint="http://minio:9000", addressing="path", prefix="p/").presign_get("k", 60)
        assert path.startswith("http://minio:9000/examplebucket/p/k?")
        token = self.presigner(session_token="to/ken").presign_get("k", 60)
        assert "X-Amz-Security-Token=to%2Fken" in token
        v6 = self.presigner(endpoint="http://[::1]:80", addressing="path").presign_get("k", 60)
        assert v6.startswith("http://[::1]/examplebucket/k?")

    @pytest.mark.parametrize("seconds", [0, -1, 604801])
    def test_the_validity_of_a_url_is_bounded(self, seconds: int) -> None:
        with pytest.raises(ValueError, match="7 days"):
            self.presigner().presign_get("k", seconds)

    @pytest.mark.parametrize(
        "change",
        [
            {"endpoint": "file:///etc"}, {"endpoint": "minio:9000"}, {"endpoint": "http://"},
            {"endpoint": "http://u:p@h"}, {"endpoint": "http://h/path"}, {"endpoint": "http://h/?q"}, {"bucket": ""},
            {"bucket": "a/b"}, {"prefix": "a"}, {"prefix": "../"}, {"endpoint": "https://h:99999"},
            {"endpoint": "https://[::::]"}, {"endpoint": "https://..."}, {"endpoint": "https://h:0"},
            {"endpoint": "https://h:x"}, {"endpoint": "https://[::1"},
        ],
    )  # fmt: skip
    def test_invalid_configurations_are_refused(self, change: dict[str, str]) -> None:
        with pytest.raises(ValueError):
            self.presigner(**change)

    def test_secrets_do_not_appear_in_the_repr(self) -> None:
        presigner = self.presigner(session_token="tok", ca_pem="pem")
        for secret in ("wJalr", "AKIA", "tok", "pem"):
            assert secret not in repr(presigner)


@pytest.fixture(autouse=True)
def no_real_sleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that would sleep by the real clock."""

    def fail(_: float) -> None:
        raise AssertionError("a unit test slept")

    monkeypatch.setattr("time.sleep", fail)
    yield
