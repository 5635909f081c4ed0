from dataclasses import replace
from typing import Any

import pytest
from savepoint.errors import IntegrityError, StoreUnavailable
from savepoint.repository.format.canonical import encode
from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.entry import entry_of
from savepoint.repository.format.manifest import component_digest
from savepoint.repository.format.object_keys import pack_key
from savepoint.repository.format.segment import blob_refs
from savepoint.repository.format.tree import TreeFile
from savepoint.repository.read.fetch import RANGE_BYTES, Wanted, read_ranges
from savepoint.repository.read.reader import CheckpointReader
from savepoint.repository.read.verify import verify
from savepoint.repository.write.source import Entry, MemorySource
from savepoint.repository.write.writer import CheckpointWriter

from tests.fakes.repository_fixture import RepositoryFixture, content
from tests.fakes.store import Fault, FaultyStore, MemoryStore, always

PREFIX = "default/coder/"


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def repo(store: FaultyStore) -> RepositoryFixture:
    repo = RepositoryFixture(store)

    def fill(writer: CheckpointWriter) -> None:
        entries = [Entry(f"e{n}", "bytes", MemorySource(content(f"e{n}", 500))) for n in range(20)]
        writer.add_entries("documents", "Memory", entries)
        writer.add_blob("weights", "ModelWeights", MemorySource(content("w", 700_000)))
        stored = writer.store_bytes(content("f", 5000), "Files")
        writer.add_tree("files", "Files", [TreeFile("f", 0o644, 1, stored)])

    repo.checkpoint(fill)
    return repo


def test_an_intact_checkpoint_has_no_problem(repo: RepositoryFixture) -> None:
    with repo.reader() as reader:
        assert verify(reader) == []


def test_every_flipped_bit_is_found_and_named(repo: RepositoryFixture, store: Any) -> None:
    memory = store._store
    assert repo.manifest is not None
    [pack] = repo.manifest.packs
    key = PREFIX + pack_key(pack.name)
    whole = memory.objects[key]
    for position in range(8, len(whole), 9973):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        memory.objects[key] = bytes(damaged)
        with repo.reader() as reader:
            problems = verify(reader)
        assert len(problems) == 1
        assert problems[0].object_key == pack_key(pack.name)
        assert problems[0].component in {"documents", "weights", "files"}


def test_damage_is_reported_once_per_component(repo: RepositoryFixture, store: Any) -> None:
    memory = store._store
    with repo.reader() as reader:
        refs = [ref for component in reader.components for ref in reader.references(component)]
        chosen = [refs[3], refs[4], refs[-1]]
        key = PREFIX + pack_key(refs[0].pack)
        damaged = bytearray(memory.objects[key])
        for ref in chosen:
            damaged[ref.offset] ^= 1
        memory.objects[key] = bytes(damaged)
        assert [problem.component for problem in verify(reader)] == ["documents", "files"]


def test_a_missing_pack_is_reported(repo: RepositoryFixture, store: Any) -> None:
    assert repo.manifest is not None
    [pack] = repo.manifest.packs
    repo.repository.store.delete(pack_key(pack.name))
    with repo.reader() as reader:
        problems = verify(reader)
    assert [problem.component for problem in problems] == ["documents", "weights", "files"]


def test_a_missing_pack_is_found_although_the_segments_are_intact(repo: RepositoryFixture) -> None:
    repo.checkpoint(lambda writer: writer.add_blob("b", "Custom", MemorySource(content("b", 1 << 20))))
    more = content("b", 1 << 20) + content("more", 1 << 20)
    offer = repo.checkpoint(lambda writer: writer.add_blob("b", "Custom", MemorySource(more)))
    assert repo.manifest is not None
    [old] = set(repo.manifest.packs) - set(offer.packs)
    repo.repository.store.delete(pack_key(old.name))
    with repo.reader() as reader:
        assert [problem.object_key for problem in verify(reader)] == [pack_key(old.name)]


def test_an_unavailable_store_is_not_a_problem_of_the_checkpoint(repo: RepositoryFixture, store: FaultyStore) -> None:
    store.script = always("get_into", Fault(StoreUnavailable("down")))
    with repo.reader() as reader, pytest.raises(StoreUnavailable):
        verify(reader)


class TestRuns:
    def ref(self, offset: int, stored: int = 100, pack: str = "1-" + "0" * 32) -> ChunkRef:
        return ChunkRef(offset.to_bytes(32, "big"), pack, offset, stored, stored - 17)

    def runs(self, *refs: ChunkRef) -> list[tuple[str, int, int, int]]:
        wanted = [Wanted(ref, number) for number, ref in enumerate(refs)]
        return [(run.pack[0], run.start, run.end, len(run.wanted)) for run in read_ranges(wanted)]

    def test_neighbours_are_read_at_once(self) -> None:
        assert self.runs(self.ref(208), self.ref(8), self.ref(108)) == [("1", 8, 308, 3)]

    def test_a_chunk_wanted_twice_is_read_once(self) -> None:
        assert self.runs(self.ref(8), self.ref(8)) == [("1", 8, 108, 2)]

    def test_a_wide_gap_or_another_pack_starts_a_run(self) -> None:
        assert self.runs(self.ref(8), self.ref(108 + (64 << 10))) == [("1", 8, 208 + (64 << 10), 2)]
        assert len(self.runs(self.ref(8), self.ref(109 + (64 << 10)))) == 2
        assert len(self.runs(self.ref(8), self.ref(108, pack="2-" + "0" * 32))) == 2

    def test_the_length_of_a_run_is_bounded(self) -> None:
        refs = [self.ref(8 + n * (1 << 20), 1 << 20) for n in range(10)]
        found = self.runs(*refs)
        assert [count for *_, count in found] == [4, 4, 2]
        assert all(end - start <= RANGE_BYTES for _, start, end, _ in found)

    def test_no_chunks_need_no_run(self) -> None:
        assert self.runs() == []


class TestReader:
    def test_a_duplicate_entry_is_refused(self, repo: RepositoryFixture) -> None:
        def twice(writer: CheckpointWriter) -> None:
            component = writer.add_entries("documents", "Memory", [Entry("a", "bytes", MemorySource(b"1"))])
            doubled = (*component.segments, *component.segments)
            writer._components[0] = replace(component, segments=doubled, digest=component_digest(doubled), size=2)

        repo.checkpoint(twice)
        with repo.reader() as reader, pytest.raises(IntegrityError, match="two values"):
            reader.read_entries(reader.components[0])

    def blob_of(self, repo: RepositoryFixture, change: dict[str, Any]) -> CheckpointReader:
        repo.checkpoint(lambda writer: writer.add_blob("b", "Custom", MemorySource(content("b", 3 << 20))))
        assert repo.manifest is not None
        component = replace(repo.manifest.components[0], **change)
        return repo.reader(replace(repo.manifest, components=(component,)))

    @pytest.mark.parametrize("size", [0, 1 << 20, (3 << 20) - 1, (3 << 20) + 1])
    def test_a_blob_with_the_wrong_size_is_refused(self, repo: RepositoryFixture, size: int) -> None:
        with self.blob_of(repo, {"size": size}) as reader, pytest.raises(IntegrityError, match="add up"):
            reader.read_blob_into(reader.components[0], lambda _: None)

    def test_a_line_with_too_many_or_no_references_is_refused(self, repo: RepositoryFixture) -> None:
        ref = ["ab" * 32, "1-" + "0" * 32, 8, 100, 90]
        for count in (0, 257):
            with pytest.raises(IntegrityError, match="chunk references"):
                list(blob_refs(encode([ref] * count) + b"\n", "x"))
        with pytest.raises(IntegrityError, match="does not end"):
            list(blob_refs(encode([ref]), "x"))

    def test_an_entry_of_unknown_encoding_is_refused(self) -> None:
        line = {"name": "a", "encoding": "pickle", "meta": {}, "size": 0, "chunks": []}
        with pytest.raises(IntegrityError, match="pickle"):
            entry_of(line, "x")
        assert entry_of(line | {"encoding": "bytes"}, "x").content.size == 0
        with pytest.raises(IntegrityError, match="unknown fields"):
            entry_of(line | {"encoding": "bytes", "alg": "none"}, "x")
