from datetime import datetime, timedelta
from typing import Any

import pytest
from savepoint.errors import IntegrityError, ObjectMissing, StoreMisconfigured, StoreUnavailable, Superseded
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.format.object_keys import manifest_key, pack_key
from savepoint.repository.history import lineage
from savepoint.repository.history.collect import CollectReport, collect
from savepoint.repository.history.lineage import Pending
from savepoint.repository.read.verify import verify
from savepoint.repository.repository import Repository
from savepoint.repository.write.source import MemorySource
from savepoint.storage.wrapper import Prefixed

from tests.fakes.repository_fixture import NOW, TIME, RepositoryFixture, content, keys
from tests.fakes.store import Call, Fault, FaultyStore, MemoryStore, at

DAY = timedelta(days=1)
GRACE = 24 * 3600.0


class CollectionHarness:
    """A repository with some checkpoints, in a store that has a clock."""

    def __init__(self, checkpoints: int = 4) -> None:
        self.now = NOW
        self.memory = MemoryStore(lambda: self.now)
        self.store = FaultyStore(self.memory)
        self.repo = RepositoryFixture(self.store)
        self.manifests: list[Manifest] = []
        for number in range(checkpoints):
            self.checkpoint(number)

    def checkpoint(self, number: int) -> None:
        def fill(writer: Any) -> None:
            writer.add_blob("shared", "Custom", MemorySource(content("shared", 3000)))
            writer.add_blob("own", "Custom", MemorySource(content(f"own {number}", 3000)))

        self.repo.checkpoint(fill)
        assert self.repo.manifest is not None
        self.manifests.append(self.repo.manifest)

    def collect(self, keep: set[int], *, grace: float = GRACE, now: datetime | None = None) -> CollectReport:
        repo = self.repo
        moment = now or self.now
        return collect(repo.repository, repo.chain, repo.head, keep=keep, grace_seconds=grace, now=moment)

    @property
    def own(self) -> Any:
        return self.repo.repository.store


def test_unneeded_objects_are_removed() -> None:
    harness = CollectionHarness()
    harness.now += 2 * DAY
    report = harness.collect({3})
    assert (report.manifests, report.packs) == (2, 1), "the first pack is still referred to by every checkpoint"
    assert report.young == 0
    assert report.bytes > 0
    assert len(keys(harness.own, "commits/")) == 5, "records stay"
    for manifest in (harness.manifests[1], harness.manifests[3]):
        assert verify(harness.repo.reader(manifest)) == []
    assert report.kept_packs == len(keys(harness.own, "packs/")) == 3
    assert report.kept_bytes == sum(info.size for info in harness.own.list("packs/"))
    assert harness.collect({3}).bytes == 0


def test_the_head_is_always_kept() -> None:
    harness = CollectionHarness()
    harness.now += 2 * DAY
    harness.collect(set())
    assert verify(harness.repo.reader()) == []
    assert len(keys(harness.own, "manifests/")) == 1


def test_the_manifest_that_a_grant_or_rollback_carries_is_kept() -> None:
    harness = CollectionHarness()
    harness.repo.head = lineage.rollback(
        harness.repo.chain, harness.repo.head, harness.repo.chain.record(2).manifest, TIME
    )
    harness.repo.grant("pod-2")
    harness.now += 2 * DAY
    harness.collect(set())
    assert verify(harness.repo.reader(harness.manifests[0])) == []


def test_young_objects_are_kept() -> None:
    harness = CollectionHarness()
    harness.now += DAY - timedelta(seconds=1)
    report = harness.collect(set())
    assert (report.manifests, report.packs) == (0, 0)
    assert report.young == 5
    assert harness.collect(set(), grace=1).manifests == 3


def test_objects_without_a_modification_time_are_kept() -> None:
    harness = CollectionHarness()

    class Undated(MemoryStore):
        def list(self, prefix: str) -> Any:
            for info in super().list(prefix):
                yield type(info)(info.key, info.size)

    undated = Undated()
    undated.objects = harness.memory.objects
    repository = Repository(Prefixed(undated, "default/coder/"), "default", "coder", harness.repo.repository.key)
    report = collect(
        repository, harness.repo.chain, harness.repo.head, keep=set(), grace_seconds=0, now=harness.now + DAY
    )
    assert report.young == 5
    assert report.bytes == 0


def test_a_collection_based_on_an_old_head_is_refused() -> None:
    harness = CollectionHarness()
    old = harness.repo.head
    harness.checkpoint(9)
    harness.now += 2 * DAY
    with pytest.raises(Superseded):
        collect(harness.repo.repository, harness.repo.chain, old, keep=set(), grace_seconds=0, now=harness.now)
    assert len(keys(harness.own, "manifests/")) == 5


def test_a_chain_may_grow_during_the_collection() -> None:
    harness = CollectionHarness()
    harness.now += 2 * DAY
    head = harness.repo.head

    def grow(call: Call) -> None:
        if call.method == "list" and call.key.endswith("packs/"):
            harness.store.script = lambda _: None
            harness.checkpoint(9)

    harness.store.script = grow
    with pytest.raises(Superseded):
        collect(
            harness.repo.repository, harness.repo.chain, head, keep=set(), grace_seconds=0, now=harness.now + 2 * DAY
        )
    assert len(keys(harness.own, "manifests/")) == 5


def test_a_kept_checkpoint_that_cannot_be_read_stops_the_collection() -> None:
    harness = CollectionHarness()
    harness.now += 2 * DAY
    name = harness.repo.chain.record(3).manifest
    assert name is not None
    before = keys(harness.own)
    with pytest.raises(ObjectMissing):
        harness.collect({99})
    harness.memory.objects["default/coder/" + manifest_key(name.name)] = b"damaged"
    with pytest.raises(IntegrityError):
        harness.collect({3})
    harness.own.delete(manifest_key(name.name))
    with pytest.raises(ObjectMissing):
        harness.collect({3})
    assert keys(harness.own) == [key for key in before if name.name not in key]


def test_a_kept_sequence_beyond_the_head_stops_the_collection() -> None:
    harness = CollectionHarness()
    old = harness.repo.head
    harness.checkpoint(9)
    harness.own.delete(f"commits/{harness.repo.head.record.sequence:020d}")
    record = harness.repo.head.record
    harness.repo.head = old
    chain = harness.repo.chain

    class Ahead(type(chain)):  # type: ignore[misc]
        def record(self, sequence: int) -> Any:
            return record if sequence == record_sequence else super().record(sequence)

    record_sequence = record.sequence
    ahead = Ahead(harness.own, "default", "coder")
    with pytest.raises(IntegrityError, match="beyond"):
        collect(harness.repo.repository, ahead, old, keep={record_sequence}, grace_seconds=0, now=harness.now)


@pytest.mark.parametrize("skew", [timedelta(minutes=6), DAY, timedelta(days=3650)])
def test_clocks_that_differ_stop_the_collection(skew: timedelta) -> None:
    harness = CollectionHarness()
    with pytest.raises(StoreMisconfigured, match="clock"):
        harness.collect(set(), grace=0, now=harness.now - skew)
    assert harness.collect(set(), grace=0, now=harness.now - timedelta(minutes=4)).bytes == 0


def test_stale_pending_commits_are_removed() -> None:
    harness = CollectionHarness()
    pending = Pending("a", 1, "pod-1", "Shutdown", False, b"")
    harness.own.put_new("pending/1-" + "0" * 32, lineage.pending_bytes(pending))
    harness.own.put_new("pending/strange", b"?")
    harness.now += 2 * DAY
    harness.collect(set())
    assert len(keys(harness.own, "pending/")) == 2, "the epoch's pending checkpoint may still be committed"
    harness.repo.grant("pod-2")
    harness.collect(set())
    assert keys(harness.own, "pending/") == ["pending/strange"]


def test_after_a_fault_at_any_call_nothing_needed_is_removed() -> None:
    """After any lost call nothing needed is removed, and a second collection succeeds."""
    for applied in (False, True):
        position, hit = 0, True
        while hit:
            position += 1
            harness = CollectionHarness(3)
            harness.now += 2 * DAY
            harness.store.script = at({len(harness.store.calls) + position: Fault(StoreUnavailable("fault"), applied)})
            hit = False
            for _ in range(2):
                try:
                    harness.collect({2})
                except StoreUnavailable:
                    hit = True
                for manifest in (harness.manifests[0], harness.manifests[2]):
                    harness.store.script = lambda _: None
                    assert verify(harness.repo.reader(manifest)) == []
            assert len(keys(harness.own, "manifests/")) == 2
        assert position > 8


def test_orphans_of_failed_attempts_are_removed() -> None:
    harness = CollectionHarness(1)
    harness.own.put_new(pack_key("1-" + "f" * 32), b"orphan")
    harness.own.put_new(manifest_key("ff" * 32), b"orphan")
    harness.now += 2 * DAY
    report = harness.collect(set())
    assert (report.packs, report.manifests, report.bytes) == (1, 1, 12)


def test_a_lost_pack_is_reported_with_what_needs_it() -> None:
    harness = CollectionHarness(3)
    harness.now += 2 * DAY
    assert (harness.collect({2}).lost, harness.collect({2}).affected) == ((), ())
    newest = {pack.name: pack.size for pack in harness.manifests[2].packs}
    only_newest = sorted(newest.keys() - {pack.name for pack in harness.manifests[0].packs})[0]
    harness.own.delete(pack_key(only_newest))
    report = harness.collect({2})
    assert report.lost == (f"{pack_key(only_newest)} is missing, {newest[only_newest]} bytes are expected",)
    assert report.affected == (harness.repo.head.record.sequence,)
    harness.own.put_new(pack_key(only_newest), b"short")
    assert "has 5 bytes" in harness.collect({2}).lost[0]
