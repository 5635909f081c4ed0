"""Packs that the store has lost are found by their sizes, and nothing refers to them again."""

import pytest
from savepoint.errors import StateUnstable, StoreDenied
from savepoint.repository.format.entry import EntryRecord
from savepoint.repository.format.manifest import Pack
from savepoint.repository.format.object_keys import pack_key
from savepoint.repository.read.verify import verify
from savepoint.repository.write.lost_packs import BATCH, lost_packs
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter, WriterOptions

from tests.fakes.repository_fixture import RepositoryFixture, content, finish
from tests.fakes.store import Fault, FaultyStore, MemoryStore

MIB = 1 << 20


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def repo(store: FaultyStore) -> RepositoryFixture:
    return RepositoryFixture(store)


def test_missing_and_truncated_packs_are_named_with_their_sizes(store: FaultyStore) -> None:
    packs = [Pack(f"1-{number:032x}", 10) for number in range(BATCH + 3)]
    for pack in packs[2:]:
        store.put_new(pack_key(pack.name), b"0123456789")
    store.put_new(pack_key(packs[1].name), b"012")
    found = lost_packs(store, packs)
    assert [(each.name, each.found) for each in found] == [(packs[0].name, None), (packs[1].name, 3)]
    assert "is missing, 10 bytes are expected" in str(found[0]) and "has 3 bytes" in str(found[1])


def test_a_store_without_an_answer_does_not_count_as_a_loss(store: FaultyStore) -> None:
    store.script = lambda call: Fault(StoreDenied("403"))
    with pytest.raises(StoreDenied):
        lost_packs(store, [Pack("1-" + "0" * 32, 10)])


def test_the_search_ends_when_the_attempt_does(store: FaultyStore) -> None:
    def check() -> None:
        raise StateUnstable("ended")

    with pytest.raises(StateUnstable, match="ended"):
        lost_packs(store, [Pack("1-" + "0" * 32, 10)], check)


def fill(writer: CheckpointWriter) -> None:
    writer.add_blob("weights", "ModelWeights", MemorySource(content("weights", 3 * MIB)))
    writer.add_blob("notes", "Memory", MemorySource(b"notes"))


def writer_of(repo: RepositoryFixture, lost: frozenset[str], *, keep_index: bool) -> CheckpointWriter:
    return CheckpointWriter(
        repo.repository.store,
        repo.repository.store,
        repo.repository.key,
        repo.epoch,
        repo.manifest,
        index=repo.index if keep_index else None,
        options=WriterOptions(threads=1, random_bytes=repo.random, lost_packs=lost),
    )


def lose_packs(repo: RepositoryFixture) -> frozenset[str]:
    assert repo.manifest is not None
    for pack in repo.manifest.packs:
        repo.repository.store.delete(pack_key(pack.name))
    return frozenset(each.name for each in lost_packs(repo.repository.store, repo.manifest.packs))


@pytest.mark.parametrize("keep_index", [True, False])
def test_what_was_in_a_lost_pack_is_stored_again(repo: RepositoryFixture, keep_index: bool) -> None:
    repo.checkpoint(fill)
    lost = lose_packs(repo)
    assert lost
    writer = writer_of(repo, lost, keep_index=keep_index)
    fill(writer)
    offer = finish(writer, 2, repo.parent)
    writer.commit()
    repo.manifest = writer.manifest
    repo.commit(offer)
    assert not lost & {pack.name for pack in writer.manifest.packs}
    with repo.reader() as reader:
        assert verify(reader) == []


def test_without_the_check_the_loss_would_be_inherited(repo: RepositoryFixture) -> None:
    repo.checkpoint(fill)
    lose_packs(repo)
    repo.checkpoint(fill)
    with repo.reader() as reader:
        assert verify(reader) != []


def test_content_of_a_lost_pack_cannot_be_referred_to(repo: RepositoryFixture) -> None:
    entries: list[EntryRecord] = []

    def keep(writer: CheckpointWriter) -> None:
        entries.append(EntryRecord("a", "json", writer.store_bytes(content("a", MIB), "Memory"), {}))
        writer.add_stored_entries("values", "Memory", entries)

    repo.checkpoint(keep)
    lost = lose_packs(repo)
    writer = writer_of(repo, lost, keep_index=True)
    assert not writer.can_reuse(entries[0].content)
    writer.add_stored_entries("values", "Memory", entries)
    with pytest.raises(StateUnstable, match="which the store lost"):
        finish(writer, 2, repo.parent)
    writer.abort()


def test_a_loss_is_still_known_after_an_aborted_attempt(repo: RepositoryFixture) -> None:
    repo.checkpoint(fill)
    lost = lose_packs(repo)
    writer = writer_of(repo, lost, keep_index=True)
    fill(writer)
    repo.index = writer.abort()
    repo.checkpoint(fill)
    with repo.reader() as reader:
        assert verify(reader) == []
