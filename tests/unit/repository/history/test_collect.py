from datetime import datetime, timedelta
from typing import Any

import pytest
from savepoint.errors import IntegrityError, ObjectMissing, StoreMisconfigured, StoreUnavailable, Superseded
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


class Lab:
    """A world whose store has a clock, with some checkpoints in it."""

    def __init__(self, checkpoints: int = 4) -> None:
        self.now = NOW
        self.memory = MemoryStore(lambda: self.now)
        self.store = FaultyStore(self.memory)
        self.world = RepositoryFixture(self.store)
        self.manifests = []
        for number in range(checkpoints):
            self.checkpoint(number)

    def checkpoint(self, number: int) -> None:
        def fill(writer: Any) -> None:
            writer.add_blob("shared", "Custom", MemorySource(content("shared", 3000)))
            writer.add_blob("own", "Custom", MemorySource(content(f"own {number}", 3000)))

        self.world.checkpoint(fill)
        assert self.world.manifest is not None
        self.manifests.append(self.world.manifest)

    def collect(self, keep: set[int], *, grace: float = GRACE, now: datetime | None = None) -> CollectReport:
        world = self.world
        moment = now or self.now
        return collect(world.repository, world.chain, world.head, keep=keep, grace_seconds=grace, now=moment)

    @property
    def own(self) -> Any:
        return self.world.repository.store


def test_what_nobody_needs_goes() -> None:
    lab = Lab()
    lab.now += 2 * DAY
    report = lab.collect({3})
    assert (report.manifests, report.packs) == (2, 1), "the first pack is still referred to by everyone"
    assert report.young == 0
    assert report.bytes > 0
    assert len(keys(lab.own, "commits/")) == 5, "records stay"
    for manifest in (lab.manifests[1], lab.manifests[3]):
        assert verify(lab.world.reader(manifest)) == []
    assert report.kept_packs == len(keys(lab.own, "packs/")) == 3
    assert report.kept_bytes == sum(info.size for info in lab.own.list("packs/"))
    assert lab.collect({3}).bytes == 0


def test_the_head_is_always_kept() -> None:
    lab = Lab()
    lab.now += 2 * DAY
    lab.collect(set())
    assert verify(lab.world.reader()) == []
    assert len(keys(lab.own, "manifests/")) == 1


def test_the_manifest_that_a_grant_or_rollback_carries_is_kept() -> None:
    lab = Lab()
    lab.world.head = lineage.rollback(lab.world.chain, lab.world.head, lab.world.chain.record(2).manifest, TIME)
    lab.world.grant("pod-2")
    lab.now += 2 * DAY
    lab.collect(set())
    assert verify(lab.world.reader(lab.manifests[0])) == []


def test_what_is_young_stays() -> None:
    lab = Lab()
    lab.now += DAY - timedelta(seconds=1)
    report = lab.collect(set())
    assert (report.manifests, report.packs) == (0, 0)
    assert report.young == 5
    assert lab.collect(set(), grace=1).manifests == 3


def test_what_a_store_cannot_date_stays() -> None:
    lab = Lab()

    class Undated(MemoryStore):
        def list(self, prefix: str) -> Any:
            for info in super().list(prefix):
                yield type(info)(info.key, info.size)

    undated = Undated()
    undated.objects = lab.memory.objects
    repository = Repository(Prefixed(undated, "default/coder/"), "default", "coder", lab.world.repository.key)
    report = collect(repository, lab.world.chain, lab.world.head, keep=set(), grace_seconds=0, now=lab.now + DAY)
    assert report.young == 5
    assert report.bytes == 0


def test_a_chain_that_has_grown() -> None:
    lab = Lab()
    old = lab.world.head
    lab.checkpoint(9)
    lab.now += 2 * DAY
    with pytest.raises(Superseded):
        collect(lab.world.repository, lab.world.chain, old, keep=set(), grace_seconds=0, now=lab.now)
    assert len(keys(lab.own, "manifests/")) == 5


def test_a_chain_that_grows_meanwhile() -> None:
    lab = Lab()
    lab.now += 2 * DAY
    head = lab.world.head

    def grow(call: Call) -> None:
        if call.method == "list" and call.key.endswith("packs/"):
            lab.store.script = lambda _: None
            lab.checkpoint(9)

    lab.store.script = grow
    with pytest.raises(Superseded):
        collect(lab.world.repository, lab.world.chain, head, keep=set(), grace_seconds=0, now=lab.now + 2 * DAY)
    assert len(keys(lab.own, "manifests/")) == 5


def test_a_kept_checkpoint_that_cannot_be_read() -> None:
    lab = Lab()
    lab.now += 2 * DAY
    name = lab.world.chain.record(3).manifest
    assert name is not None
    before = keys(lab.own)
    with pytest.raises(ObjectMissing):
        lab.collect({99})
    lab.memory.objects["default/coder/" + manifest_key(name.name)] = b"damaged"
    with pytest.raises(IntegrityError):
        lab.collect({3})
    lab.own.delete(manifest_key(name.name))
    with pytest.raises(ObjectMissing):
        lab.collect({3})
    assert keys(lab.own) == [key for key in before if name.name not in key]


def test_a_kept_sequence_beyond_the_head() -> None:
    lab = Lab()
    old = lab.world.head
    lab.checkpoint(9)
    lab.own.delete(f"commits/{lab.world.head.record.sequence:020d}")
    record = lab.world.head.record
    lab.world.head = old
    chain = lab.world.chain

    class Ahead(type(chain)):  # type: ignore[misc]
        def record(self, sequence: int) -> Any:
            return record if sequence == record_sequence else super().record(sequence)

    record_sequence = record.sequence
    ahead = Ahead(lab.own, "default", "coder")
    with pytest.raises(IntegrityError, match="beyond"):
        collect(lab.world.repository, ahead, old, keep={record_sequence}, grace_seconds=0, now=lab.now)


@pytest.mark.parametrize("skew", [timedelta(minutes=6), DAY, timedelta(days=3650)])
def test_clocks_that_differ(skew: timedelta) -> None:
    lab = Lab()
    with pytest.raises(StoreMisconfigured, match="clock"):
        lab.collect(set(), grace=0, now=lab.now - skew)
    assert lab.collect(set(), grace=0, now=lab.now - timedelta(minutes=4)).bytes == 0


def test_stale_pending_commits() -> None:
    lab = Lab()
    pending = Pending("a", 1, "pod-1", "Shutdown", False, b"")
    lab.own.put_new("pending/1-" + "0" * 32, lineage.pending_bytes(pending))
    lab.own.put_new("pending/strange", b"?")
    lab.now += 2 * DAY
    lab.collect(set())
    assert len(keys(lab.own, "pending/")) == 2, "the epoch may still be adopted"
    lab.world.grant("pod-2")
    lab.collect(set())
    assert keys(lab.own, "pending/") == ["pending/strange"]


def test_a_fault_at_every_call() -> None:
    """F29: whatever is lost, nothing needed goes, and asking again ends."""
    for applied in (False, True):
        position, hit = 0, True
        while hit:
            position += 1
            lab = Lab(3)
            lab.now += 2 * DAY
            lab.store.script = at({len(lab.store.calls) + position: Fault(StoreUnavailable("fault"), applied)})
            hit = False
            for _ in range(2):
                try:
                    lab.collect({2})
                except StoreUnavailable:
                    hit = True
                for manifest in (lab.manifests[0], lab.manifests[2]):
                    lab.store.script = lambda _: None
                    assert verify(lab.world.reader(manifest)) == []
            assert len(keys(lab.own, "manifests/")) == 2
        assert position > 8


def test_orphans_of_failed_attempts_go() -> None:
    lab = Lab(1)
    lab.own.put_new(pack_key("1-" + "f" * 32), b"orphan")
    lab.own.put_new(manifest_key("ff" * 32), b"orphan")
    lab.now += 2 * DAY
    report = lab.collect(set())
    assert (report.packs, report.manifests, report.bytes) == (1, 1, 12)
