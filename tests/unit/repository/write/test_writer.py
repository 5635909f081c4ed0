import hashlib
import os
import threading
from collections.abc import Iterator
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
def world(store: FaultyStore) -> RepositoryFixture:
    return RepositoryFixture(store)


def blob(data: bytes, kind: str = "ModelWeights", name: str = "weights") -> Any:
    return lambda writer: writer.add_blob(name, kind, MemorySource(data))


def read_blob(world: RepositoryFixture, name: str = "weights") -> bytes:
    with world.reader() as reader:
        component = reader.manifest.component(name)
        assert component is not None
        found: list[bytes] = []
        reader.read_blob_into(component, found.append)
        return pieces(found)


def kept_index(world: RepositoryFixture) -> None:
    """The index that the writer kept says the same as one read from the store."""
    assert world.index is not None
    fresh = load_index(world.repository.store, world.repository.key, world.manifest)
    assert sorted(fresh.uses(), key=str) == sorted(world.index.uses(), key=str)


@pytest.mark.parametrize("size", [0, 1, 255, SMALL_BLOCK_BYTES, SMALL_BLOCK_BYTES + 1, 3 * MIB + 17])
@pytest.mark.parametrize("threads", [1, 2])
def test_blobs_come_back(world: RepositoryFixture, size: int, threads: int) -> None:
    data = content("blob", size)
    offer = world.checkpoint(blob(data), threads)
    assert read_blob(world) == data
    assert offer.logical == size
    with world.reader() as reader:
        assert verify(reader) == []
    kept_index(world)


def test_a_blob_of_many_segments(world: RepositoryFixture) -> None:
    data = bytes(260 * MIB)
    world.checkpoint(blob(data), 2)
    assert world.manifest is not None
    assert len(world.manifest.components[0].segments) == 2
    assert hashlib.sha256(read_blob(world)).digest() == hashlib.sha256(data).digest()
    assert world.manifest.size.uploaded < 200_000, "one chunk, many references"


def test_nothing_changed_stores_nothing(world: RepositoryFixture, store: FaultyStore) -> None:
    data = content("blob", 2 * MIB)
    world.checkpoint(blob(data))
    first = world.manifest
    before = keys(store)
    for index in (world.index, None):
        world.index = index
        writer = world.writer()
        blob(data)(writer)
        offer = finish(writer, 5, world.parent, put=False)
        assert offer.uploaded_bytes == 0
        assert offer.packs == ()
        assert first is not None
        assert writer.manifest.content_digest == first.content_digest
        world.index = writer.abort()
    assert keys(store) == before


@pytest.mark.parametrize("kept", [True, False])
def test_an_increment_is_as_small_as_the_change(kept: bool) -> None:
    size = 64 * MIB
    world = RepositoryFixture(MemoryStore())
    data = bytearray(content("blob", size))
    world.checkpoint(blob(bytes(data)), 2)
    data[20 * MIB : 20 * MIB + size // 100] = content("change", size // 100)
    if not kept:
        world.index = None
    offer = world.checkpoint(blob(bytes(data)), 2)
    assert offer.uploaded_bytes <= size * 2 // 100
    assert read_blob(world) == data
    kept_index(world)


def test_equal_content_is_stored_once(world: RepositoryFixture) -> None:
    data = content("same", SMALL_BLOCK_BYTES)
    offer = world.checkpoint(blob(data * 50), 2)
    assert offer.uploaded_bytes < 3 * SMALL_BLOCK_BYTES
    assert read_blob(world) == data * 50


def test_packs_are_bounded_and_named(world: RepositoryFixture, store: FaultyStore) -> None:
    offer = world.checkpoint(blob(content("large", 70 * MIB)), 2)
    assert len(offer.packs) >= 3
    assert all(pack.size <= 32 * MIB for pack in offer.packs)
    assert [pack.name for pack in offer.packs] == sorted(pack.name for pack in offer.packs)
    assert all(pack.name.startswith("1-") for pack in offer.packs)
    for pack in offer.packs:
        info = world.repository.store.head(pack_key(pack.name))
        assert info is not None
        assert info.size == pack.size
    assert world.manifest is not None
    assert world.manifest.packs == offer.packs
    assert world.manifest.size.uploaded == offer.uploaded_bytes == sum(pack.size for pack in offer.packs)


def test_the_manifest_can_be_put_by_somebody_else(world: RepositoryFixture) -> None:
    writer = world.writer()
    blob(b"data")(writer)
    offer = finish(writer, 1, put=False)
    writer.commit()
    assert world.repository.store.head(manifest_key(offer.name)) is None
    assert world.repository.put_manifest(offer.manifest_bytes) == (offer.name, offer.size)
    assert world.repository.put_manifest(offer.manifest_bytes) == (offer.name, offer.size)
    assert world.repository.read_manifest(offer.name, offer.size) == writer.manifest


def test_a_manifest_name_with_other_bytes(world: RepositoryFixture) -> None:
    writer = world.writer()
    offer = finish(writer, 1, put=False)
    writer.abort()
    world.repository.store.put_new(manifest_key(offer.name), b"other")
    with pytest.raises(IntegrityError, match="other bytes"):
        world.repository.put_manifest(offer.manifest_bytes)


class TestEntries:
    def entries(self, **change: bytes) -> list[Entry]:
        values = {"notes": b'{"a":1}', "empty": b"", "tensor": content("t", 700_000)} | change
        return [
            Entry(name, "tensor" if name == "tensor" else "json", MemorySource(value), {"shape": [len(value)]})
            for name, value in values.items()
        ]

    def test_they_come_back(self, world: RepositoryFixture) -> None:
        world.checkpoint(lambda writer: writer.add_entries("documents", "Memory", self.entries()))
        with world.reader() as reader:
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

    def test_a_change_stores_only_itself(self, world: RepositoryFixture) -> None:
        world.checkpoint(lambda writer: writer.add_entries("documents", "Memory", self.entries()))
        offer = world.checkpoint(lambda writer: writer.add_entries("documents", "Memory", self.entries(notes=b"{}")))
        assert offer.uploaded_bytes < 2000

    def test_many_entries_make_segments(self, world: RepositoryFixture) -> None:
        entries = [Entry(f"e{n}", "json", MemorySource(b"%d" % n)) for n in range(3000)]
        world.checkpoint(lambda writer: writer.add_entries("documents", "Memory", entries), 2)
        assert world.manifest is not None
        assert len(world.manifest.components[0].segments) > 5
        with world.reader() as reader:
            found = reader.read_entries(reader.components[0])
            assert list(found) == [f"e{n}" for n in range(3000)]

    @pytest.mark.parametrize(
        ("name", "meta", "match"),
        [("", {}, "printable"), ("a\nb", {}, "printable"), ("x" * 1025, {}, "printable"),
         ("a", {"x": 1.5}, "canonical"),
         ("a", {"x": "y" * 70_000}, "64 KiB")],
    )  # fmt: skip
    def test_what_cannot_be_named(self, world: RepositoryFixture, name: str, meta: dict[str, Any], match: str) -> None:
        entry = Entry(name, "json", MemorySource(b"x"), meta)
        with pytest.raises(ValueError, match=match):
            world.checkpoint(lambda writer: writer.add_entries("documents", "Memory", [entry]))

    def test_names_differ(self, world: RepositoryFixture) -> None:
        twice = [Entry("a", "json", MemorySource(b"1")), Entry("a", "json", MemorySource(b"2"))]
        with pytest.raises(ValueError, match="two values named"):
            world.checkpoint(lambda writer: writer.add_entries("documents", "Memory", twice))


class TestTrees:
    def tree(self, writer: CheckpointWriter, files: dict[str, bytes], kind: str = "Files") -> None:
        folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
        stored = {path: writer.store_bytes(data, kind) for path, data in files.items()}
        entries = [TreeDirectory(path, 0o755, 1) for path in folders]
        everything = entries + [TreeFile(path, 0o644, 2, stored[path]) for path in files]
        writer.add_tree("workspace", kind, sorted(everything, key=lambda entry: path_bytes(entry.path)))

    def test_only_changed_segments_are_rewritten(self, world: RepositoryFixture) -> None:
        files = {f"d{n % 50}/f{n}": content(str(n), 200) for n in range(5000)}
        full = world.checkpoint(lambda writer: self.tree(writer, files))
        assert world.manifest is not None
        before = set(world.manifest.components[0].segments)
        assert len(before) > 10
        files["d7/f7"] = b"changed"
        offer = world.checkpoint(lambda writer: self.tree(writer, files))
        assert len(set(world.manifest.components[0].segments) - before) == 1
        assert offer.uploaded_bytes < full.uploaded_bytes / 20
        del files["d8/f8"]
        world.checkpoint(lambda writer: self.tree(writer, files))
        kept_index(world)
        with world.reader() as reader:
            assert verify(reader) == []
            names = [entry.path for entry in reader.tree_entries(reader.components[0])]
        assert "d8/f8" not in names
        assert names == sorted(names)

    def test_a_large_file_has_segments_of_its_own(self, world: RepositoryFixture) -> None:
        data = content("x", SMALL_BLOCK_BYTES) * 300 + b"end"
        stored: list[Content] = []

        def fill(writer: CheckpointWriter) -> None:
            stored.append(writer.store_bytes(data, "ModelWeights"))
            writer.add_tree("models", "ModelWeights", [TreeFile("model", 0o600, 1, stored[-1])])

        world.checkpoint(fill, 2)
        assert stored[0].chunks == ()
        assert len(stored[0].more) == 1
        assert len(list(stored[0].chunk_ids())) == 301
        with world.reader() as reader:
            assert verify(reader) == []
            [entry] = reader.tree_entries(reader.components[0])
            assert isinstance(entry, TreeFile)
            assert pieces([reader.read_content(entry.content)]) == data
            complete = reader.complete_content(entry.content)
            assert complete == stored[0]
            assert reader.complete_content(complete) is complete
        kept_index(world)

        def again(writer: CheckpointWriter) -> None:
            assert writer.can_reuse(complete)
            writer.add_tree("models", "ModelWeights", [TreeFile("model", 0o600, 1, complete)])

        assert world.checkpoint(again).uploaded_bytes == 0
        kept_index(world)
        with pytest.raises(ValueError, match="complete"):
            world.checkpoint(lambda writer: writer.add_tree("m", "Files", [entry]))

    def test_content_of_the_parent_is_reused_unread(self, world: RepositoryFixture) -> None:
        stored: list[Content] = []

        def fill(writer: CheckpointWriter) -> None:
            stored.append(writer.store_bytes(content("a", 5000), "Files"))
            writer.add_tree("workspace", "Files", [TreeFile("a", 0o600, 1, stored[-1])])

        world.checkpoint(fill)

        def touched(writer: CheckpointWriter) -> None:
            assert writer.can_reuse(stored[0])
            writer.add_tree("workspace", "Files", [TreeFile("a", 0o600, 2, stored[0])])

        assert world.checkpoint(touched).uploaded_bytes < 1000
        writer = world.writer()
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
    def test_trees_that_could_not_be_restored(self, world: RepositoryFixture, entries: list[Any], match: str) -> None:
        with pytest.raises(IntegrityError, match=match):
            world.checkpoint(lambda writer: writer.add_tree("workspace", "Files", entries))

    @pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/..", ".", "a\0", "x" * 256, "a/" * 2100, "\ud800"])
    def test_paths_that_cannot_be_stored(self, world: RepositoryFixture, path: str) -> None:
        with pytest.raises((ValueError, IntegrityError)):
            world.checkpoint(lambda writer: writer.add_tree("w", "Files", [TreeDirectory(path, 0o755, 1)]))

    def test_a_link_without_target(self, world: RepositoryFixture) -> None:
        with pytest.raises(ValueError, match="no target"):
            world.checkpoint(lambda writer: writer.add_tree("w", "Files", [TreeSymlink("a", "", 1)]))

    def test_an_entry_too_large_for_a_segment(self, world: RepositoryFixture) -> None:
        ref = world_ref(world)
        huge = Content(1, (), (ref,) * 10_000, frozenset({ref.pack}), ref.id)
        with pytest.raises(StateTooLarge):
            world.checkpoint(lambda writer: writer.add_tree("w", "Files", [TreeFile("a", 0, 1, huge)]))


def world_ref(world: RepositoryFixture) -> Any:
    world.checkpoint(blob(b"x"))
    assert world.manifest is not None
    return world.manifest.components[0].segments[0]


class TestFiles:
    def test_a_file_is_stored_from_its_descriptor(self, world: RepositoryFixture, tmp_path: Path) -> None:
        data = content("file", 2 * MIB + 5)
        (tmp_path / "file").write_bytes(data)
        handle = os.open(tmp_path / "file", os.O_RDONLY)
        try:
            writer = world.writer(2)
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
    def test_a_file_that_shrank(self, world: RepositoryFixture, tmp_path: Path, left: int) -> None:
        (tmp_path / "file").write_bytes(content("file", left))
        handle = os.open(tmp_path / "file", os.O_RDONLY)
        try:
            writer = world.writer(2)
            assert writer.store_file(handle, 3 * MIB).size == left
            assert writer.store_file(handle, 600 * MIB).size == left
            with pytest.raises(StateUnstable):
                writer.store(FileSource(handle, 3 * MIB), "Files")
            writer.abort()
        finally:
            os.close(handle)

    @pytest.mark.parametrize(("size", "in_threads"), [(100, False), (200_000, True)])
    def test_map_keeps_the_order(self, world: RepositoryFixture, size: int, in_threads: bool) -> None:
        """Small items are dearer in several threads than in one."""
        threads: set[int] = set()

        def one(number: int) -> Content:
            threads.add(threading.get_ident())
            return writer.store_bytes(b"%04d" % number * (size // 4), "Files")

        writer = world.writer(2)
        found = list(writer.map(one, range(300)))
        writer.abort()
        assert [each.chunks[0].id for each in found] == [
            hashlib.sha256(b"%04d" % number * (size // 4)).digest() for number in range(300)
        ]
        assert (len(threads) > 1) is in_threads

    def test_what_is_known(self, world: RepositoryFixture) -> None:
        writer = world.writer()
        stored = writer.store_bytes(b"once", "Files")
        assert writer.find_chunk(hashlib.sha256(b"once").digest()) == stored.chunks[0]
        assert writer.find_chunk(hashlib.sha256(b"never").digest()) is None
        assert list(stored.chunk_ids()) == [stored.chunks[0].id]
        writer.abort()

    def test_map_passes_errors_on(self, world: RepositoryFixture) -> None:
        writer = world.writer(2)
        with pytest.raises(ZeroDivisionError):
            list(writer.map(lambda number: 1 // (5 - number), range(300)))
        with pytest.raises(ZeroDivisionError):
            list(writer.map(lambda number: writer.store_bytes(bytes(100_000 // (150 - number)), "Files"), range(300)))
        writer.abort()

    def test_large_files_within_map_do_not_lock_up(self, world: RepositoryFixture) -> None:
        data = content("large", 40 * MIB)
        writer = world.writer(2)
        found = list(writer.map(lambda _: writer.store_bytes(data, "Files"), range(4)))
        writer.abort()
        assert {each.size for each in found} == {len(data)}


class TestPuts:
    def test_storing_goes_on_while_a_pack_is_put(self, world: RepositoryFixture, store: FaultyStore) -> None:
        """The first pack is let through only when a second one is being filled."""
        filled = threading.Event()

        def slow(call: Call) -> None:
            if call.method == "put_new":
                assert filled.wait(20)

        writer = world.writer(1)
        store.script = slow
        writer.store_bytes(content("one", 33 * MIB), "Files")
        writer.store_bytes(content("two", 20 * MIB), "Files")
        filled.set()
        writer.abort()
        assert len(store.calls) > 1

    def test_a_failed_put_is_told_to_everyone_who_stores(self, world: RepositoryFixture, store: FaultyStore) -> None:
        writer = world.writer(2)
        store.script = always("put_new", Fault(NoSpace("full")))
        with pytest.raises(NoSpace):
            writer.store_bytes(content("x", 150 * MIB), "Files")
        with pytest.raises(NoSpace):
            writer.store_bytes(content("y", 100 * MIB), "Files")
        with pytest.raises(NoSpace):
            finish(writer, 1)
        writer.abort()

    def test_an_abort_while_no_lane_is_free(self, world: RepositoryFixture, store: FaultyStore) -> None:
        stuck, let_go, told = threading.Event(), threading.Event(), []

        class Slow:
            length = 10

            def read_into(self, offset: int, target: memoryview) -> int:
                stuck.set()
                assert let_go.wait(20)
                return len(target)

        def work(source: Any) -> None:
            try:
                writer.store(source, "Files")
            except DeadlineExceeded as error:
                told.append(error)

        writer = world.writer(1)
        holder = threading.Thread(target=work, args=(Slow(),))
        holder.start()
        assert stuck.wait(20)
        waiter = threading.Thread(target=work, args=(MemorySource(b"x"),))
        waiter.start()
        while not writer._workers._freed._waiters:  # type: ignore[attr-defined]
            pass
        writer.abort()
        waiter.join(20)
        assert told
        let_go.set()
        holder.join(20)

    def test_an_abort_while_no_buffer_is_free(self, world: RepositoryFixture, store: FaultyStore) -> None:
        """Both buffers are being put and stuck; the abort waits for the puts, and who waits for a buffer is told."""
        stuck, let_go, told = threading.Event(), threading.Event(), []

        def slow(call: Call) -> None:
            if call.method == "put_new":
                stuck.set()
                assert let_go.wait(20)

        writer = world.writer(1)
        store.script = slow

        def work() -> None:
            try:
                writer.store_bytes(content("z", 150 * MIB), "Files")
            except DeadlineExceeded as error:
                told.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        assert stuck.wait(20)
        aborting = threading.Thread(target=writer.abort)
        aborting.start()
        worker.join(20)
        assert told
        let_go.set()
        aborting.join(20)
        assert not aborting.is_alive()


class TestEnd:
    def test_progress_rises_to_the_whole(self, world: RepositoryFixture) -> None:
        told: list[int] = []
        writer = CheckpointWriter(
            world.repository.store,
            world.repository.store,
            world.repository.key,
            1,
            None,
            options=WriterOptions(progress=told.append),
        )
        writer.add_blob("weights", "ModelWeights", MemorySource(content("x", 3 * MIB)))
        writer.abort()
        assert max(told) >= 3 * MIB

    def test_an_aborted_writer_stores_nothing_more(self, world: RepositoryFixture) -> None:
        writer = world.writer(2)
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

    def test_abort_stops_threads_that_store(self, world: RepositoryFixture) -> None:
        started, errors = threading.Event(), []

        class Endless:
            length = 1 << 40

            def read_into(self, offset: int, target: memoryview) -> int:
                started.set()
                target[:8] = offset.to_bytes(8, "big")
                return len(target)

        writer = world.writer(2)

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

    def test_a_component_is_added_once_and_has_a_kind(self, world: RepositoryFixture) -> None:
        writer = world.writer()
        blob(b"x")(writer)
        with pytest.raises(ValueError, match="twice"):
            blob(b"x")(writer)
        with pytest.raises(ValueError, match="unknown kind"):
            blob(b"x", kind="Code", name="other")(writer)
        writer.abort()

    @pytest.mark.parametrize("error", [StoreUnavailable("down"), NoSpace("full")])
    def test_a_store_that_fails(self, world: RepositoryFixture, store: FaultyStore, error: Any) -> None:
        world.checkpoint(blob(content("one", MIB)))
        store.script = always("put_new", Fault(error))
        with pytest.raises(type(error)):
            world.checkpoint(blob(content("two", 80 * MIB)), 2)
        store.script = lambda call: None
        world.checkpoint(blob(content("two", 3 * MIB)), 2)
        assert read_blob(world) == content("two", 3 * MIB)
        kept_index(world)

    def test_a_large_state_is_stored_in_several_attempts(self, world: RepositoryFixture, store: FaultyStore) -> None:
        """F5: what the first attempt has put need not be put again, and only that."""
        data = content("large", 150 * MIB)
        puts: list[Call] = []

        def third_is_lost(call: Call) -> Fault | None:
            if call.method == "put_new":
                puts.append(call)
            return Fault(StoreUnavailable("down")) if len(puts) > 2 else None

        store.script = third_is_lost
        writer = world.writer(2)
        with pytest.raises(StoreUnavailable):
            blob(data)(writer)
        world.index = writer.abort(keep_stored=True)
        store.script = lambda call: None
        offer = world.checkpoint(blob(data), 2)
        assert 70 * MIB < offer.uploaded_bytes < 90 * MIB
        assert read_blob(world) == data
        kept_index(world)

    def test_packs_nobody_refers_to_are_not_put(self, world: RepositoryFixture, store: FaultyStore) -> None:
        writer = world.writer()
        writer.store_bytes(b"superseded before the cut", "Files")
        offer = finish(writer, 1)
        writer.commit()
        assert offer.packs == ()
        assert keys(world.repository.store, "packs/") == []


def test_growth_is_bounded(world: RepositoryFixture) -> None:
    """Small changes for a long time: neither packs nor stored bytes pile up, and everything restores."""
    documents = {f"d{n}": content(f"d{n}", 3000) for n in range(60)}
    stored: list[int] = []

    def fill(writer: CheckpointWriter) -> Iterator[None]:
        entries = [Entry(name, "bytes", MemorySource(value)) for name, value in documents.items()]
        return writer.add_entries("documents", "Memory", entries)  # type: ignore[return-value]

    for turn in range(400):
        documents[f"d{turn * 7 % 60}"] = content(f"turn {turn}", 3000)
        world.checkpoint(fill)
        assert world.manifest is not None
        assert len(world.manifest.packs) <= 128
        stored.append(sum(pack.size for pack in world.manifest.packs))
    live = sum(len(value) for value in documents.values())
    assert max(stored) < 8 * live
    with world.reader() as reader:
        found = reader.read_entries(reader.components[0])
        assert {name: reader.read_content(each.content) for name, each in found.items()} == documents
        assert verify(reader) == []
    kept_index(world)


def test_poor_packs_are_rewritten(world: RepositoryFixture) -> None:
    parts = {n: content(f"part {n}", SMALL_BLOCK_BYTES) for n in range(64)}
    world.checkpoint(blob(b"".join(parts.values())))
    for round_number in range(3):
        for n in range(50):
            parts[n] = content(f"{round_number} {n}", SMALL_BLOCK_BYTES)
        world.checkpoint(blob(b"".join(parts.values())))
        assert world.manifest is not None
        assert sum(pack.size for pack in world.manifest.packs) < 3.4 * 64 * SMALL_BLOCK_BYTES
        assert read_blob(world) == b"".join(parts.values())
    kept_index(world)


def test_uploaded_bytes_are_what_the_store_got() -> None:
    metered = Metered(MemoryStore())
    world = RepositoryFixture(metered)
    before = metered.meter.bytes_put
    offer = world.offer(blob(content("x", 3 * MIB)), 2)
    assert metered.meter.bytes_put - before == offer.uploaded_bytes + offer.size
    assert isinstance(offer.packs[0], Pack)
    assert "manifest_bytes" not in repr(offer)
