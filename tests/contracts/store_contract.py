"""The contract of every ObjectStore. Each implementation and each fake subclasses ``StoreContract`` in a test module.

The tests use only the protocol, so that the same suite runs against a dict and against a real server.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from savepoint.errors import IntegrityError, ObjectExists, ObjectMissing
from savepoint.storage.store import ObjectStore

WRITERS = 8


class BlobContract:
    """The part for stores without list and delete. A subclass provides the fixture ``store``, empty for each test."""

    def test_a_stored_object_can_be_read(self, store: ObjectStore) -> None:
        store.put_new("a/b/c", b"content")
        assert store.get("a/b/c", max_bytes=7) == b"content"

    def test_parts_are_joined(self, store: ObjectStore) -> None:
        store.put_new("parts", [b"one", bytearray(b"two"), memoryview(b"xthreex")[1:-1]])
        assert store.get("parts", max_bytes=100) == b"onetwothree"

    def test_a_put_never_replaces_an_object(self, store: ObjectStore) -> None:
        store.put_new("key", b"first")
        with pytest.raises(ObjectExists):
            store.put_new("key", b"second")
        assert store.get("key", max_bytes=100) == b"first"

    def test_exactly_one_of_many_writers_wins(self, store: ObjectStore) -> None:
        barrier = threading.Barrier(WRITERS)

        def write(number: int) -> bool:
            barrier.wait()
            try:
                store.put_new("race", b"%d" % number)
            except ObjectExists:
                return False
            return True

        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(write, range(WRITERS)))
        assert sum(won) == 1
        assert store.get("race", max_bytes=10) == b"%d" % won.index(True)

    def test_a_missing_object_is_reported_as_missing(self, store: ObjectStore) -> None:
        assert store.head("nothing") is None
        with pytest.raises(ObjectMissing):
            store.get("nothing", max_bytes=10)
        with pytest.raises(ObjectMissing):
            store.get_into("nothing", 0, memoryview(bytearray(1)))

    def test_a_key_below_an_object_is_missing(self, store: ObjectStore) -> None:
        store.put_new("a", b"object")
        assert store.head("a/b") is None
        with pytest.raises(ObjectMissing):
            store.get("a/b", max_bytes=10)

    def test_a_folder_is_not_an_object(self, store: ObjectStore) -> None:
        store.put_new("folder/object", b"content")
        assert store.head("folder") is None
        with pytest.raises(ObjectMissing):
            store.get("folder", max_bytes=10)

    def test_larger_than_expected_is_refused(self, store: ObjectStore) -> None:
        store.put_new("large", bytes(1000))
        with pytest.raises(IntegrityError) as caught:
            store.get("large", max_bytes=999)
        assert caught.value.object_key.endswith("large")  # as the store knows it, with any prefix

    @pytest.mark.parametrize(("offset", "length"), [(0, 10), (0, 1), (3, 4), (9, 1), (0, 0)])
    def test_ranges(self, store: ObjectStore, offset: int, length: int) -> None:
        store.put_new("digits", b"0123456789")
        target = bytearray(length)
        store.get_into("digits", offset, memoryview(target))
        assert target == b"0123456789"[offset : offset + length]

    @pytest.mark.parametrize(("offset", "length"), [(0, 11), (5, 6), (10, 1), (50, 3)])
    def test_a_range_beyond_the_end_is_refused(self, store: ObjectStore, offset: int, length: int) -> None:
        store.put_new("digits", b"0123456789")
        with pytest.raises(IntegrityError) as caught:
            store.get_into("digits", offset, memoryview(bytearray(length)))
        assert caught.value.object_key.endswith("digits")  # as the store knows it, with any prefix

    def test_large_objects_and_ranges(self, store: ObjectStore) -> None:
        content = bytes(range(256)) * (5 << 12)
        store.put_new("large", memoryview(content))
        target = bytearray(3 << 20)
        store.get_into("large", 1_000_001, memoryview(target))
        assert target == content[1_000_001 : 1_000_001 + len(target)]
        assert store.get("large", max_bytes=len(content)) == content

    def test_head_reports_the_size(self, store: ObjectStore) -> None:
        store.put_new("sized", bytes(12345))
        info = store.head("sized")
        assert info is not None
        assert (info.key, info.size) == ("sized", 12345)

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "a b", "a\\b", "x" * 1025]
    )
    def test_invalid_keys_are_refused(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(ValueError, match="not an object key"):
            store.put_new(key, b"x")
        with pytest.raises(ValueError, match="not an object key"):
            store.get(key, max_bytes=1)

    def test_many_threads_read_and_write(self, store: ObjectStore) -> None:
        def work(number: int) -> bool:
            content = b"%d" % number * 1000
            store.put_new(f"many/{number}", content)
            return store.get(f"many/{number}", max_bytes=len(content)) == content

        with ThreadPoolExecutor(WRITERS) as pool:
            assert all(pool.map(work, range(50)))


class StoreContract(BlobContract):
    """The whole contract, for stores that can also list and delete."""

    def test_listing(self, store: ObjectStore) -> None:
        keys = ["a/1", "a/2", "a/b/3", "ab/4", "c"]
        for key in keys:
            store.put_new(key, key.encode())
        listed = list(store.list(""))
        assert sorted(info.key for info in listed) == keys
        assert all(info.size == len(info.key) for info in listed)
        assert all(info.modified is not None and info.modified.tzinfo is not None for info in listed)
        assert sorted(info.key for info in store.list("a/")) == ["a/1", "a/2", "a/b/3"]
        assert sorted(info.key for info in store.list("a")) == ["a/1", "a/2", "a/b/3", "ab/4"]
        assert [info.key for info in store.list("a/b/3")] == ["a/b/3"]
        assert list(store.list("nothing/")) == []

    def test_a_deleted_object_is_missing_and_can_be_created_again(self, store: ObjectStore) -> None:
        store.put_new("key", b"first")
        store.delete("key")
        assert store.head("key") is None
        store.delete("key")
        store.put_new("key", b"second")
        assert store.get("key", max_bytes=100) == b"second"

    def test_deleting_a_missing_object_succeeds(self, store: ObjectStore) -> None:
        store.delete("never/was")
