import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from savepoint.errors import DeadlineExceeded, IntegrityError, NoSpace, StateTooLarge, StateUnstable, StoreUnavailable
from savepoint.repository.format.chunk import SMALL_BLOCK_BYTES, content_digest
from savepoint.repository.format.content import Content
from savepoint.repository.format.manifest import Pack
from savepoint.repository.format.object_keys import manifest_key, pack_key
from savepoint.repository.format.tree import TreeDirectory, TreeFile, TreeSymlink, path_bytes
from savepoint.repository.read.verify import verify
from savepoint.repository.write.source import Entry, FileSource, MemorySource
from savepoint.repository.write.writer import CheckpointWriter, WriterOptions, load_index
from savepoint.storage.wrapper import Metered

from tests.fakes.repository_fixture import RepositoryFixture, content, finish, keys, pieces
from tests.fakes.store import Call, Fault, FaultyStore, MemoryStore, always

MIB = 1 << 20


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def repo(store: FaultyStore) -> RepositoryFixture:
    return RepositoryFixture(store)


def blob(data: bytes, kind: str = "ModelWeights", name: str = "weights") -> Any:
    return lambda writer: writer.add_blob(name, kind, MemorySource(data))


def read_blob(repo: RepositoryFixture, name: str = "weights") -> bytes:
    with repo.reader() as reader:
        component = reader.manifest.component(name)
        assert component is not None
        found: list[bytes] = []
        reader.read_blob_into(component, found.append)
        return pieces(found)


def check_kept_index(repo: RepositoryFixture) -> None:
    """Check that the index which the writer kept equals one read from the store."""
    assert repo.index is not None
    fresh = load_index(repo.repository.store, repo.repository.key, repo.manifest)
    assert sorted(fresh.pack_uses(), key=str) == sorted(repo.index.pack_uses(), key=str)


@pytest.mark.parametrize("size", [0, 1, 255, SMALL_BLOCK_BYTES, SMALL_BLOCK_BYTES + 1, 3 * MIB + 17])
@pytest.mark.parametrize("threads", [1, 2])
def test_blobs_survive_a_round_trip(repo: RepositoryFixture, size: int, threads: int) -> None:
    data = content("blob", size)
    offer = repo.checkpoint(blob(data), threads)
    assert read_blob(repo) == data
    assert offer.logical == size
    with repo.reader() as reader:
        assert verify(reader) == []
    check_kept_index(repo)


def test_a_blob_of_many_segments_is_restored(repo: RepositoryFixture) -> None:
    data = bytes(260 * MIB)
    repo.checkpoint(blob(data), 2)
    assert repo.manifest is not None
    assert len(repo.manifest.components[0].segments) == 2
    assert hashlib.sha256(read_blob(repo)).digest() == hashlib.sha256(data).digest()
    assert repo.manifest.size.uploaded < 200_000, "one chunk, many references"


def test_an_unchanged_state_stores_nothing(repo: RepositoryFixture, store: FaultyStore) -> None:
    data = content("blob", 2 * MIB)
    repo.checkpoint(blob(data))
    first = repo.manifest
    before = keys(store)
    for index in (repo.index, None):
        repo.index = index
        writer = repo.writer()
        blob(data)(writer)
        offer = finish(writer, 5, repo.parent, put=False)
        assert offer.uploaded_bytes == 0
        assert offer.packs == ()
        assert first is not None
        assert writer.manifest.content_digest == first.content_digest
        repo.index = writer.abort()
    assert keys(store) == before


@pytest.mark.parametrize("kept", [True, False])
def test_an_increment_is_as_small_as_the_change(kept: bool) -> None:
    size = 64 * MIB
    repo = RepositoryFixture(MemoryStore())
    data = bytearray(content("blob", size))
    repo.checkpoint(blob(bytes(data)), 2)
    data[20 * MIB : 20 * MIB + size // 100] = content("change", size // 100)
    if not kept:
        repo.index = None
    offer = repo.checkpoint(blob(bytes(data)), 2)
    assert offer.uploaded_bytes <= size * 2 // 100
    assert read_blob(repo) == data
    check_kept_index(repo)


def test_equal_content_is_stored_once(repo: RepositoryFixture) -> None:
    data = content("same", SMALL_BLOCK_BYTES)
    offer = repo.checkpoint(blob(data * 50), 2)
    assert offer.uploaded_bytes < 3 * SMALL_BLOCK_BYTES
    assert read_blob(repo) == data * 50


def test_packs_are_bounded_and_named(repo: RepositoryFixture, store: FaultyStore) -> None:
    offer = repo.checkpoint(blob(content("large", 70 * MIB)), 2)
    assert len(offer.packs) >= 3
    assert all(pack.size <= 32 * MIB for pack in offer.packs)
    assert [pack.name for pack in offer.packs] == sorted(pack.name for pack in offer.packs)
    assert all(pack.name.startswith("1-") for pack in offer.packs)
    for pack in offer.packs:
        info = repo.repository.store.head(pack_key(pack.name))
        assert info is not None
        assert info.size == pack.size
    assert repo.manifest is not None
    assert repo.manifest.packs == offer.packs
    assert repo.manifest.size.uploaded == offer.uploaded_bytes == sum(pack.size for pack in offer.packs)


def test_another_process_can_store_the_manifest(repo: RepositoryFixture) -> None:
    writer = repo.writer()
    blob(b"data")(writer)
    offer = finish(writer, 1, put=False)
    writer.commit()
    assert repo.repository.store.head(manifest_key(offer.name)) is None
    assert repo.repository.put_manifest(offer.manifest_bytes) == (offer.name, offer.size)
    assert repo.repository.put_manifest(offer.manifest_bytes) == (offer.name, offer.size)
    assert repo.repository.read_manifest(offer.name, offer.size) == writer.manifest


def test_other_bytes_under_a_manifest_name_are_refused(repo: RepositoryFixture) -> None:
    writer = repo.writer()
    offer = finish(writer, 1, put=False)
    writer.abort()
    repo.repository.store.put_new(manifest_key(offer.name), b"other")
    with pytest.raises(IntegrityError, match="other bytes"):
        repo.repository.put_manifest(offer.manifest_bytes)


class TestEntries:
    def entries(self, **change: bytes) -> list[Entry]:
        values = {"notes": b'{"a":1}', "empty": b"", "tensor": content("t", 700_000)} | change
        return [
            Entry(name, "tensor" if name == "tensor" else "json", MemorySource(value), {"shape": [len(value)]})
            for name, value in values.items()
        ]

    def test_entries_survive_a_round_trip(self, repo: RepositoryFixture) -> None:
        repo.checkpoint(lambda writer: writer.add_entries("documents", "Memory", self.entries()))
        with repo.reader() as reader:
            found = reader.read_entries(reader.components[0])
            assert list(found) == ["notes", "empty", "tensor"]
            assert reader.read_content(found["notes"].content) == b'{"a":1}'
            assert reader.read_content(found["empty"].content) == b""
            assert found["tensor"].meta == {"shape": [700_000]}
            assert found["tensor"].encoding == "tensor"
            parts: list[bytes] = []
            reader.read_content_into(found["tensor"].content, parts.append)
            assert pieces(parts) == content("t", 700_000)
            assert reader.components[0].size == 700_007

    def test_a_change_uploads_only_the_changed_entry(self, repo: RepositoryFixture) -> None:
        repo.checkpoint(lambda writer: writer.add_entries("documents", "Memory", self.entries()))
        offer = repo.checkpoint(lambda writer: writer.add_entries("documents", "Memory", self.entries(notes=b"{}")))
        assert offer.uploaded_bytes < 2000

    def test_many_entries_make_segments(self, repo: RepositoryFixture) -> None:
        entries = [Entry(f"e{n}", "json", MemorySource(b"%d" % n)) for n in range(3000)]
        repo.checkpoint(lambda writer: writer.add_entries("documents", "Memory", entries), 2)
        assert repo.manifest is not None
        assert len(repo.manifest.components[0].segments) > 5
        with repo.reader() as reader:
            found = reader.read_entries(reader.components[0])
            assert list(found) == [f"e{n}" for n in range(3000)]

    @pytest.mark.parametrize(
        ("name", "meta", "match"),
        [("", {}, "printable"), ("a\nb", {}, "printable"), ("x" * 1025, {}, "printable"),
         ("a", {"x": 1.5}, "canonical"),
         ("a", {"x": "y" * 70_000}, "64 KiB")],
    )  # fmt: skip
    def test_invalid_names_and_meta_are_refused(
        self, repo: RepositoryFixture, name: str, meta: dict[str, Any], match: str
    ) -> None:
        entry = Entry(name, "json", MemorySource(b"x"), meta)
        with pytest.raises(ValueError, match=match):
            repo.checkpoint(lambda writer: writer.add_entries("documents", "Memory", [entry]))

    def test_duplicate_names_are_refused(self, repo: RepositoryFixture) -> None:
        twice = [Entry("a", "json", MemorySource(b"1")), Entry("a", "json", MemorySource(b"2"))]
        with pytest.raises(ValueError, match="two values named"):
            repo.checkpoint(lambda writer: writer.add_entries("documents", "Memory", twice))


class TestTrees:
    def tree(self, writer: CheckpointWriter, files: dict[str, bytes], kind: str = "Files") -> None:
        folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
        stored = {path: writer.store_bytes(data, kind) for path, data in files.items()}
        entries = [TreeDirectory(path, 0o755, 1) for path in folders]
        everything = entries + [TreeFile(path, 0o644, 2, stored[path]) for path in files]
        writer.add_tree("workspace", kind, sorted(everything, key=lambda entry: path_bytes(entry.path)))

    def test_only_changed_segments_are_rewritten(self, repo: RepositoryFixture) -> None:
        files = {f"d{n % 50}/f{n}": content(str(n), 200) for n in range(5000)}
        full = repo.checkpoint(lambda writer: self.tree(writer, files))
        assert repo.manifest is not None
        before = set(repo.manifest.components[0].segments)
        assert len(before) > 10
        files["d7/f7"] = b"changed"
        offer = repo.checkpoint(lambda writer: self.tree(writer, files))
        assert len(set(repo.manifest.components[0].segments) - before) == 1
        assert offer.uploaded_bytes < full.uploaded_bytes / 20
        del files["d8/f8"]
        repo.checkpoint(lambda writer: self.tree(writer, files))
        check_kept_index(repo)
        with repo.reader() as reader:
            assert verify(reader) == []
            names = [entry.path for entry in reader.tree_entries(reader.components[0])]
        assert "d8/f8" not in names
        assert names == sorted(names)

    def test_a_large_file_has_segments_of_its_own(self, repo: RepositoryFixture) -> None:
        data = content("x", SMALL_BLOCK_BYTES) * 300 + b"end"
        stored: list[Content] = []

        def fill(writer: CheckpointWriter) -> None:
            stored.append(writer.store_bytes(data, "ModelWeights"))
            writer.add_tree("models", "ModelWeights", [TreeFile("model", 0o600, 1, stored[-1])])

        repo.checkpoint(fill, 2)
        assert stored[0].chunks == ()
        assert len(stored[0].more) == 1
        assert len(list(stored[0].chunk_ids())) == 301
        with repo.reader() as reader:
            assert verify(reader) == []
            [entry] = reader.tree_entries(reader.components[0])
            assert isinstance(entry, TreeFile)
            assert pieces([reader.read_content(entry.content)]) == data
            complete = reader.complete_content(entry.content)
            assert complete == stored[0]
            assert reader.complete_content(complete) is complete
        check_kept_index(repo)

        def again(writer: CheckpointWriter) -> None:
            assert writer.can_reuse(complete)
            writer.add_tree("models", "ModelWeights", [TreeFile("model", 0o600, 1, complete)])

        assert repo.checkpoint(again).uploaded_bytes == 0
        check_kept_index(repo)
        with pytest.raises(ValueError, match="complete"):
            repo.checkpoint(lambda writer: writer.add_tree("m", "Files", [entry]))

    def test_content_of_the_parent_is_reused_unread(self, repo: RepositoryFixture) -> None:
        stored: list[Content] = []

        def fill(writer: CheckpointWriter) -> None:
            stored.append(writer.store_bytes(content("a", 5000), "Files"))
            writer.add_tree("workspace", "Files", [TreeFile("a", 0o600, 1, stored[-1])])

        repo.checkpoint(fill)

        def touched(writer: CheckpointWriter) -> None:
            assert writer.can_reuse(stored[0])
            writer.add_tree("workspace", "Files", [TreeFile("a", 0o600, 2, stored[0])])

        assert repo.checkpoint(touched).uploaded_bytes < 1000
        writer = repo.writer()
        foreign = stored[0].chunks[0]._replace(pack="9-" + "0" * 32)
        assert not writer.can_reuse(Content(5000, (foreign,), packs=frozenset({foreign.pack})))
        writer.abort()

    @pytest.mark.parametrize(
        ("entries", "match"),
        [
            ([TreeDirectory("b", 0o755, 1), TreeDirectory("a", 0o755, 1)], "out of order"),
            ([TreeDirectory("a", 0o755, 1), TreeDirectory("a", 0o755, 1)], "twice"),
            ([TreeDirectory("a/b", 0o755, 1)], "no directory"),
            ([TreeSymlink("a", "x", 1), TreeDirectory("a/b", 0o755, 1)], "no directory"),
        ],
    )
    def test_trees_that_cannot_be_restored_are_refused(
        self, repo: RepositoryFixture, entries: list[Any], match: str
    ) -> None:
        with pytest.raises(IntegrityError, match=match):
            repo.checkpoint(lambda writer: writer.add_tree("workspace", "Files", entries))

    @pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/..", ".", "a\0", "x" * 256, "a/" * 2100, "\ud800"])
    def test_invalid_paths_are_not_stored(self, repo: RepositoryFixture, path: str) -> None:
        with pytest.raises((ValueError, IntegrityError)):
            repo.checkpoint(lambda writer: writer.add_tree("w", "Files", [TreeDirectory(path, 0o755, 1)]))

    def test_a_link_without_a_target_is_refused(self, repo: RepositoryFixture) -> None:
        with pytest.raises(ValueError, match="no target"):
            repo.checkpoint(lambda writer: writer.add_tree("w", "Files", [TreeSymlink("a", "", 1)]))

    def test_an_entry_too_large_for_a_segment_is_refused(self, repo: RepositoryFixture) -> None:
        ref = first_segment(repo)
        huge = Content(1, (), (ref,) * 10_000, frozenset({ref.pack}), ref.id)
        with pytest.raises(StateTooLarge):
            repo.checkpoint(lambda writer: writer.add_tree("w", "Files", [TreeFile("a", 0, 1, huge)]))


def first_segment(repo: RepositoryFixture) -> Any:
    repo.checkpoint(blob(b"x"))
    assert repo.manifest is not None
    return repo.manifest.components[0].segments[0]


class TestFiles:
    def test_a_file_is_stored_from_its_descriptor(self, repo: RepositoryFixture, tmp_path: Path) -> None:
        data = content("file", 2 * MIB + 5)
        (tmp_path / "file").write_bytes(data)
        handle = os.open(tmp_path / "file", os.O_RDONLY)
        try:
            writer = repo.writer(2)
            stored = writer.store_file(handle, len(data))
            part = writer.store(FileSource(handle, 100, offset=7), "Files")
            writer.abort()
        finally:
            os.close(handle)
        assert stored.size == len(data)
        assert [ref.length for ref in stored.chunks] == [MIB, MIB, 5]
        assert part.size == 100
        assert part.chunks[0].id == hashlib.sha256(data[7:107]).digest()
        assert len(content_digest(stored.chunks)) == 64

    @pytest.mark.parametrize("left", [0, 1, MIB, MIB + 1, 600 * MIB // 256])
    def test_a_file_that_shrank_is_stored_with_its_new_size(
        self, repo: RepositoryFixture, tmp_path: Path, left: int
    ) -> None:
        (tmp_path / "file").write_bytes(content("file", left))
        handle = os.open(tmp_path / "file", os.O_RDONLY)
        try:
            writer = repo.writer(2)
            assert writer.store_file(handle, 3 * MIB).size == left
            assert writer.store_file(handle, 600 * MIB).size == left
            with pytest.raises(StateUnstable):
                writer.store(FileSource(handle, 3 * MIB), "Files")
            writer.abort()
        finally:
            os.close(handle)

    @pytest.mark.parametrize(("size", "in_threads"), [(100, False), (200_000, True)])
    def test_map_keeps_the_order(self, repo: RepositoryFixture, size: int, in_threads: bool) -> None:
        """Small items are processed in the caller's thread, because several threads would be slower."""
        threads: set[int] = set()

        def one(number: int) -> Content:
            threads.add(threading.get_ident())
            return writer.store_bytes(b"%04d" % number * (size // 4), "Files")

        writer = repo.writer(2)
        found = list(writer.map(one, range(300)))
        writer.abort()
        assert [each.chunks[0].id for each in found] == [
            hashlib.sha256(b"%04d" % number * (size // 4)).digest() for number in range(300)
        ]
        assert (len(threads) > 1) is in_threads

    def test_known_chunks_are_found(self, repo: RepositoryFixture) -> None:
        writer = repo.writer()
        stored = writer.store_bytes(b"once", "Files")
        assert writer.find_chunk(hashlib.sha256(b"once").digest()) == stored.chunks[0]
        assert writer.find_chunk(hashlib.sha256(b"never").digest()) is None
        assert list(stored.chunk_ids()) == [stored.chunks[0].id]
        writer.abort()

    def test_map_passes_errors_on(self, repo: RepositoryFixture) -> None:
        writer = repo.writer(2)
        with pytest.raises(ZeroDivisionError):
            list(writer.map(lambda number: 1 // (5 - number), range(300)))
        with pytest.raises(ZeroDivisionError):
            list(writer.map(lambda number: writer.store_bytes(bytes(100_000 // (150 - number)), "Files"), range(300)))
        writer.abort()

    def test_large_files_within_map_do_not_deadlock(self, repo: RepositoryFixture) -> None:
        data = content("large", 40 * MIB)
        writer = repo.writer(2)
        found = list(writer.map(lambda _: writer.store_bytes(data, "Files"), range(4)))
        writer.abort()
        assert {each.size for each in found} == {len(data)}


class TestPuts:
    def test_storing_continues_while_a_pack_is_uploaded(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        """The first upload completes only once a second pack is being filled."""
        filled = threading.Event()

        def slow(call: Call) -> None:
            if call.method == "put_new":
                assert filled.wait(20)

        writer = repo.writer(1)
        store.script = slow
        writer.store_bytes(content("one", 33 * MIB), "Files")
        writer.store_bytes(content("two", 20 * MIB), "Files")
        filled.set()
        writer.abort()
        assert len(store.calls) > 1

    def test_a_failed_upload_is_raised_to_every_caller(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        writer = repo.writer(2)
        store.script = always("put_new", Fault(NoSpace("full")))
        with pytest.raises(NoSpace):
            writer.store_bytes(content("x", 150 * MIB), "Files")
        with pytest.raises(NoSpace):
            writer.store_bytes(content("y", 100 * MIB), "Files")
        with pytest.raises(NoSpace):
            finish(writer, 1)
        writer.abort()

    def test_an_abort_ends_a_wait_for_a_worker(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        blocked, release = threading.Event(), threading.Event()
        errors: list[BaseException] = []

        class Slow:
            length = 10

            def read_into(self, offset: int, target: memoryview) -> int:
                blocked.set()
                assert release.wait(20)
                return len(target)

        def work(source: Any) -> None:
            try:
                writer.store(source, "Files")
            except DeadlineExceeded as error:
                errors.append(error)

        writer = repo.writer(1)
        holder = threading.Thread(target=work, args=(Slow(),))
        holder.start()
        assert blocked.wait(20)
        waiter = threading.Thread(target=work, args=(MemorySource(b"x"),))
        waiter.start()
        while not writer._workers._freed._waiters:  # type: ignore[attr-defined]
            pass
        writer.abort()
        waiter.join(20)
        assert errors
        release.set()
        holder.join(20)

    def test_an_abort_ends_a_wait_for_a_buffer(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        """Both uploads are blocked; the abort waits for them, and a thread that waits for a buffer gets an error."""
        blocked, release = threading.Event(), threading.Event()
        errors: list[BaseException] = []

        def slow(call: Call) -> None:
            if call.method == "put_new":
                blocked.set()
                assert release.wait(20)

        writer = repo.writer(1)
        store.script = slow

        def work() -> None:
            try:
                writer.store_bytes(content("z", 150 * MIB), "Files")
            except DeadlineExceeded as error:
                errors.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        assert blocked.wait(20)
        aborting = threading.Thread(target=writer.abort)
        aborting.start()
        worker.join(20)
        assert errors
        release.set()
        aborting.join(20)
        assert not aborting.is_alive()


class TestEnd:
    def test_progress_rises_to_the_total(self, repo: RepositoryFixture) -> None:
        reported: list[int] = []
        writer = CheckpointWriter(
            repo.repository.store,
            repo.repository.store,
            repo.repository.key,
            1,
            None,
            options=WriterOptions(progress=reported.append),
        )
        writer.add_blob("weights", "ModelWeights", MemorySource(content("x", 3 * MIB)))
        writer.abort()
        assert max(reported) >= 3 * MIB

    def test_an_aborted_writer_stores_nothing_more(self, repo: RepositoryFixture) -> None:
        writer = repo.writer(2)
        writer.store_bytes(b"before", "Files")
        writer.abort()
        with pytest.raises(DeadlineExceeded):
            writer.store_bytes(b"after", "Files")
        with pytest.raises(DeadlineExceeded):
            writer.store_bytes(bytes(40 * MIB), "Files")
        with pytest.raises(DeadlineExceeded):
            list(writer.map(len, ["a"]))
        with pytest.raises(DeadlineExceeded):
            writer._workers._submit(list)
        with pytest.raises(DeadlineExceeded):
            writer.add_blob("after", "Files", MemorySource(b"after"))

    def test_abort_stops_threads_that_store(self, repo: RepositoryFixture) -> None:
        started, errors = threading.Event(), []

        class Endless:
            length = 1 << 40

            def read_into(self, offset: int, target: memoryview) -> int:
                started.set()
                target[:8] = offset.to_bytes(8, "big")
                return len(target)

        writer = repo.writer(2)

        def work() -> None:
            try:
                writer.store(Endless(), "Files")
            except DeadlineExceeded as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(10)
        writer.abort()
        thread.join(10)
        assert not thread.is_alive()
        assert len(errors) == 1

    def test_a_component_is_added_once_and_its_kind_is_known(self, repo: RepositoryFixture) -> None:
        writer = repo.writer()
        blob(b"x")(writer)
        with pytest.raises(ValueError, match="twice"):
            blob(b"x")(writer)
        with pytest.raises(ValueError, match="unknown kind"):
            blob(b"x", kind="Code", name="other")(writer)
        writer.abort()

    @pytest.mark.parametrize("error", [StoreUnavailable("down"), NoSpace("full")])
    def test_the_writer_recovers_after_the_store_fails(
        self, repo: RepositoryFixture, store: FaultyStore, error: Any
    ) -> None:
        repo.checkpoint(blob(content("one", MIB)))
        store.script = always("put_new", Fault(error))
        with pytest.raises(type(error)):
            repo.checkpoint(blob(content("two", 80 * MIB)), 2)
        store.script = lambda call: None
        repo.checkpoint(blob(content("two", 3 * MIB)), 2)
        assert read_blob(repo) == content("two", 3 * MIB)
        check_kept_index(repo)

    def test_a_large_state_is_stored_in_several_attempts(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        """Exactly the packs that the first attempt uploaded are not uploaded again."""
        data = content("large", 150 * MIB)
        puts: list[Call] = []

        def third_is_lost(call: Call) -> Fault | None:
            if call.method == "put_new":
                puts.append(call)
            return Fault(StoreUnavailable("down")) if len(puts) > 2 else None

        store.script = third_is_lost
        writer = repo.writer(2)
        with pytest.raises(StoreUnavailable):
            blob(data)(writer)
        repo.index = writer.abort(keep_stored=True)
        store.script = lambda call: None
        offer = repo.checkpoint(blob(data), 2)
        assert 70 * MIB < offer.uploaded_bytes < 90 * MIB
        assert read_blob(repo) == data
        check_kept_index(repo)

    def test_unreferenced_packs_are_not_uploaded(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        writer = repo.writer()
        writer.store_bytes(b"replaced before the checkpoint", "Files")
        offer = finish(writer, 1)
        writer.commit()
        assert offer.packs == ()
        assert keys(repo.repository.store, "packs/") == []


def test_packs_and_stored_bytes_stay_bounded_over_many_checkpoints(repo: RepositoryFixture) -> None:
    """After many small changes packs and stored bytes stay bounded, and everything can be restored."""
    documents = {f"d{n}": content(f"d{n}", 3000) for n in range(60)}
    stored: list[int] = []

    def fill(writer: CheckpointWriter) -> Iterator[None]:
        entries = [Entry(name, "bytes", MemorySource(value)) for name, value in documents.items()]
        return writer.add_entries("documents", "Memory", entries)  # type: ignore[return-value]

    for iteration in range(400):
        documents[f"d{iteration * 7 % 60}"] = content(f"iteration {iteration}", 3000)
        repo.checkpoint(fill)
        assert repo.manifest is not None
        assert len(repo.manifest.packs) <= 128
        stored.append(sum(pack.size for pack in repo.manifest.packs))
    live = sum(len(value) for value in documents.values())
    assert max(stored) < 8 * live
    with repo.reader() as reader:
        found = reader.read_entries(reader.components[0])
        assert {name: reader.read_content(each.content) for name, each in found.items()} == documents
        assert verify(reader) == []
    check_kept_index(repo)


def test_wasteful_packs_are_repacked(repo: RepositoryFixture) -> None:
    parts = {n: content(f"part {n}", SMALL_BLOCK_BYTES) for n in range(64)}
    repo.checkpoint(blob(b"".join(parts.values())))
    for round_number in range(3):
        for n in range(50):
            parts[n] = content(f"{round_number} {n}", SMALL_BLOCK_BYTES)
        repo.checkpoint(blob(b"".join(parts.values())))
        assert repo.manifest is not None
        assert sum(pack.size for pack in repo.manifest.packs) < 3.4 * 64 * SMALL_BLOCK_BYTES
        assert read_blob(repo) == b"".join(parts.values())
    check_kept_index(repo)


def test_uploaded_bytes_are_the_bytes_the_store_received() -> None:
    metered = Metered(MemoryStore())
    repo = RepositoryFixture(metered)
    before = metered.meter.bytes_put
    offer = repo.offer(blob(content("x", 3 * MIB)), 2)
    assert metered.meter.bytes_put - before == offer.uploaded_bytes + offer.size
    assert isinstance(offer.packs[0], Pack)
    assert "manifest_bytes" not in repr(offer)


def files(count: int, name: str = "work") -> Any:
    def add(writer: CheckpointWriter) -> None:
        content = writer.store_bytes(b"x", "Files")
        paths = [f"{number:05}" for number in range(count)]
        writer.add_tree(name, "Files", [TreeFile(path, 0o644, 0, content) for path in paths])

    return add


def test_a_manifest_counts_the_files_of_a_tree(repo: RepositoryFixture) -> None:
    repo.checkpoint(files(3))
    assert repo.manifest is not None and repo.manifest.components[0].files == 3
    with repo.reader() as reader:
        assert reader.manifest == repo.manifest


def test_a_loss_of_files_is_recorded_and_remembered_until_they_are_back(repo: RepositoryFixture) -> None:
    def losses() -> list[tuple[int, str, int | None, int | None]]:
        assert repo.manifest is not None
        offered = repo.repository.store.list("manifests/")
        assert offered
        return [(each.sequence, each.component, each.files_before, each.files_now) for each in repo.manifest.shrinkages]

    repo.checkpoint(files(100))
    assert losses() == []
    good = repo.head.record.sequence
    repo.checkpoint(files(20))
    assert losses() == [(good, "", 100, 20)]
    repo.grant("pod-2")
    repo.checkpoint(files(30))
    assert losses() == [(good, "", 100, 30)]
    stored = repo.head.record.manifest
    assert stored is not None
    assert repo.repository.read_manifest(stored.name, stored.size) == repo.manifest
    repo.checkpoint(files(50))
    assert losses() == []


def test_one_file_tree_that_is_lost_is_noticed_beside_a_large_one(repo: RepositoryFixture) -> None:
    def both(writer: CheckpointWriter) -> None:
        files(15, "small")(writer)
        files(100, "work")(writer)

    repo.checkpoint(both)
    repo.checkpoint(files(100))
    assert repo.manifest is not None
    assert [(each.component, each.files_before, each.files_now) for each in repo.manifest.shrinkages] == [
        ("small", 15, 0)
    ]


def test_a_parent_that_does_not_count_its_files_is_compared_by_size_only(repo: RepositoryFixture) -> None:
    repo.checkpoint(files(100))
    assert repo.manifest is not None
    old = tuple(replace(each, files=None) for each in repo.manifest.components)
    repo.manifest = replace(repo.manifest, components=old)
    repo.checkpoint(files(20))
    assert repo.manifest.shrinkages == ()
