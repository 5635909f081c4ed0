import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from savepoint.errors import IntegrityError, ObjectMissing, SavepointError, StoreUnavailable, Superseded
from savepoint.repository.format.manifest import manifest_name, seal_manifest
from savepoint.repository.format.object_keys import manifest_key, pack_key
from savepoint.repository.history import lineage
from savepoint.repository.history.lineage import Offer, Pending
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter

from tests.fakes.repository_fixture import TIME, RepositoryFixture, attempt, content, keys
from tests.fakes.store import Call, Fault, FaultyStore, MemoryStore, at


def fill(seed: str = "one") -> Any:
    def add(writer: CheckpointWriter) -> None:
        writer.add_blob("state", "Custom", MemorySource(content(seed, 5000)))

    return add


def calm(_: Call) -> None:
    """A script without faults."""


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def world(store: FaultyStore) -> RepositoryFixture:
    return RepositoryFixture(store)


class TestGrant:
    def test_the_same_pod_gets_the_same_epoch(self, world: RepositoryFixture) -> None:
        assert lineage.grant(world.chain, world.head, "pod-1", "node", TIME) == world.head
        world.checkpoint(fill())
        assert lineage.grant(world.chain, world.head, "pod-1", "node", TIME) == world.head

    def test_another_pod_gets_the_next(self, world: RepositoryFixture) -> None:
        offer = world.checkpoint(fill())
        head = lineage.grant(world.chain, world.head, "pod-2", "node-2", TIME)
        assert (head.record.epoch, head.record.pod_uid, head.record.node) == (2, "pod-2", "node-2")
        assert head.record.manifest is not None
        assert head.record.manifest.name == offer.name

    def test_after_a_completion_it_starts_fresh(self, world: RepositoryFixture) -> None:
        world.checkpoint(fill())
        head = lineage.complete(world.chain, world.head, 1, "pod-1", TIME)
        fresh = lineage.grant(world.chain, head, "pod-1", "node", TIME)
        assert (fresh.record.epoch, fresh.record.manifest) == (2, None)

    def test_of_two_only_one_is_granted(self, world: RepositoryFixture) -> None:
        head = world.head
        lineage.grant(world.chain, head, "pod-2", "node", TIME)
        with pytest.raises(Superseded):
            lineage.grant(world.chain, head, "pod-3", "node", TIME)


class TestCommit:
    def test_a_checkpoint_exists_by_its_record(self, world: RepositoryFixture) -> None:
        offer = world.offer(fill())
        assert world.chain.head() == world.head
        head = world.commit(offer)
        assert head.record.name == "coder-1"
        assert world.chain.head() == head

    def test_an_attempt_commits_once(self, world: RepositoryFixture, store: FaultyStore) -> None:
        offer = world.offer(fill())
        before = world.head
        head = world.commit(offer)
        assert world.commit(offer) == head
        world.head = before
        assert world.commit(offer) == head, "also from an old view of the chain"
        assert len(keys(world.repository.store, "commits/")) == 2

    def test_an_old_attempt_is_answered_later(self, world: RepositoryFixture) -> None:
        offer = world.offer(fill())
        head = world.commit(offer)
        for number in range(3):
            world.checkpoint(fill(str(number)))
        newest = world.grant("pod-2")
        again = lineage.commit_checkpoint(
            world.repository, world.chain, newest, offer, epoch=1, pod_uid="pod-1", time=TIME, trigger="Interval"
        )
        assert again == head
        world.repository.store.delete(manifest_key(offer.name))
        again = lineage.commit_checkpoint(
            world.repository, world.chain, newest, offer, epoch=1, pod_uid="pod-1", time=TIME, trigger="Interval"
        )
        assert again == head, "the manifest may be collected by then"

    def test_a_superseded_epoch_commits_nothing(self, world: RepositoryFixture) -> None:
        offer = world.offer(fill())
        old = world.head
        world.grant("pod-2")
        for head in (old, world.head):
            with pytest.raises(Superseded):
                lineage.commit_checkpoint(
                    world.repository, world.chain, head, offer, epoch=1, pod_uid="pod-1", time=TIME, trigger="Interval"
                )
        assert world.chain.head() == world.head

    def test_another_pod_of_the_epoch(self, world: RepositoryFixture) -> None:
        with pytest.raises(Superseded):
            lineage.commit_checkpoint(
                world.repository,
                world.chain,
                world.head,
                world.offer(fill()),
                epoch=1,
                pod_uid="pod-x",
                time=TIME,
                trigger="Interval",
            )

    def test_a_pod_that_was_rolled_back_commits_nothing(self, world: RepositoryFixture) -> None:
        world.checkpoint(fill())
        offer = world.offer(fill("two"))
        world.head = lineage.rollback(world.chain, world.head, None, TIME)
        with pytest.raises(Superseded, match="rollback"):
            world.commit(offer)

    def test_nothing_follows_a_completion(self, world: RepositoryFixture) -> None:
        world.commit(world.offer(fill()), completed=True)
        offer = world.offer(fill("two"))
        with pytest.raises(Superseded, match="completed"):
            world.commit(offer)

    def test_a_manifest_that_is_not_there(self, world: RepositoryFixture) -> None:
        with pytest.raises(ObjectMissing):
            world.commit(Offer(attempt(9), "ab" * 32, 500))
        with pytest.raises(ObjectMissing):
            world.commit(Offer(attempt(9), "ab" * 32, 500), completed=True)

    def test_a_manifest_of_another_size(self, world: RepositoryFixture) -> None:
        offer = world.offer(fill())
        with pytest.raises(IntegrityError, match="its record says"):
            world.commit(replace(offer, size=offer.size + 1))

    def test_a_manifest_of_another_attempt(self, world: RepositoryFixture) -> None:
        offer = world.offer(fill())
        with pytest.raises(IntegrityError, match="another attempt"):
            world.commit(replace(offer, attempt=attempt(9)))

    def test_a_manifest_of_another_epoch(self, world: RepositoryFixture) -> None:
        world.offer(fill())
        assert world.manifest is not None
        name, size = world.repository.write_manifest(replace(world.manifest, epoch=7, attempt=attempt(8)))
        with pytest.raises(IntegrityError, match="epoch 7"):
            world.commit(Offer(attempt(8), name, size))

    def test_a_pack_that_is_missing_or_cut(self, world: RepositoryFixture, store: FaultyStore) -> None:
        offer = world.offer(fill())
        [pack] = offer.packs
        key = pack_key(pack.name)
        whole = world.repository.store.get(key, max_bytes=1 << 20)
        world.repository.store.delete(key)
        with pytest.raises(IntegrityError, match="not in the store") as caught:
            world.commit(offer)
        assert caught.value.object_key == key
        world.repository.store.put_new(key, whole[:-1])
        with pytest.raises(IntegrityError, match="bytes"):
            world.commit(offer)

    def test_packs_of_the_parent_are_not_asked_for_again(self, world: RepositoryFixture, store: FaultyStore) -> None:
        world.checkpoint(fill())
        store.calls.clear()

        def more(writer: CheckpointWriter) -> None:
            fill()(writer)
            writer.add_blob("more", "Custom", MemorySource(b"more"))

        offer = world.offer(more)
        store.calls.clear()
        world.commit(offer)
        assert world.manifest is not None
        assert len(world.manifest.packs) == 2
        assert [call.method for call in store.calls].count("head") == 1

    def test_a_parent_that_is_gone_vouches_for_nothing(self, world: RepositoryFixture, store: FaultyStore) -> None:
        first = world.checkpoint(fill())
        offer = world.offer(fill("two"))
        world.repository.store.delete(manifest_key(first.name))
        world.commit(offer)

    def test_the_same_attempt_asked_twice_at_once(self, world: RepositoryFixture, store: FaultyStore) -> None:
        """Both read the same head; the later one finds the record of its own attempt, with another time in it."""
        offer = world.offer(fill())

        def commit_at(time: str) -> Any:
            return lineage.commit_checkpoint(
                world.repository, world.chain, world.head, offer, epoch=1, pod_uid="pod-1", time=time, trigger="t"
            )

        first: list[Any] = []

        def meanwhile(call: Call) -> None:
            if call.method == "put_new" and not first:
                first.append(None)
                first[0] = commit_at("2027-01-01T00:00:00.000000Z")

        store.script = meanwhile
        assert commit_at(TIME) == first[0]

    def test_an_attempt_is_looked_for_within_bounds(self, world: RepositoryFixture, store: FaultyStore) -> None:
        world.grant("pod-2")
        first = world.offer(fill())
        world.commit(first)
        for number in range(70):
            world.checkpoint(fill(str(number % 2)))
        store.calls.clear()
        with pytest.raises(IntegrityError, match="another attempt"):
            world.commit(replace(first, attempt=attempt(999)))
        assert len(store.calls) < 70

    def test_a_lost_sequence(self, world: RepositoryFixture) -> None:
        before = world.head
        one, two = world.offer(fill("one")), world.offer(fill("two"))
        world.commit(one)
        world.head = before
        with pytest.raises(Superseded, match="faster"):
            world.commit(two)

    def test_completed_with_its_checkpoint(self, world: RepositoryFixture) -> None:
        offer = world.offer(fill())
        head = world.commit(offer, completed=True)
        assert (head.record.kind, head.record.sequence) == ("completed", 3)
        assert world.commit(offer, completed=True) == head

    def test_completed_after_its_checkpoint(self, world: RepositoryFixture) -> None:
        offer = world.offer(fill())
        world.commit(offer)
        head = world.commit(offer, completed=True)
        assert head.record.kind == "completed"
        assert world.commit(offer).record.kind == "checkpoint"

    @pytest.mark.parametrize("applied", [False, True])
    @pytest.mark.parametrize("completed", [False, True])
    def test_a_fault_at_every_call(self, applied: bool, completed: bool) -> None:
        """F9, F27, F39: whatever is lost, asking again ends in one record of the attempt."""
        position = 0
        while True:
            position += 1
            store = FaultyStore(MemoryStore())
            world = RepositoryFixture(store)
            offer = world.offer(fill())
            begin = len(store.calls)
            store.script = at({begin + position: Fault(StoreUnavailable("fault"), applied)})
            hit = False
            for _ in range(3):
                try:
                    head = world.commit(offer, completed=completed)
                except StoreUnavailable:
                    hit = True
                    store.script = calm
                    found = world.chain.head(world.head)
                    assert found is not None
                    world.head = found
                else:
                    break
            else:
                raise AssertionError("it never ended")
            asked = len(store.calls)
            store.script = calm
            assert world.chain.head() == head
            assert [each.record.kind for each in world.chain.back(head, 9)][::-1] == (
                ["grant", "checkpoint"] + ["completed"] * completed
            )
            if not hit and asked < begin + position:
                break
        assert position > 3


class TestCompleteAndRollback:
    def test_complete_once(self, world: RepositoryFixture) -> None:
        world.checkpoint(fill())
        head = lineage.complete(world.chain, world.head, 1, "pod-1", TIME)
        with pytest.raises(Superseded):
            lineage.complete(world.chain, head, 1, "pod-1", TIME)
        with pytest.raises(Superseded):
            lineage.complete(world.chain, world.head, 2, "pod-1", TIME)

    def test_rollback_and_reset(self, world: RepositoryFixture) -> None:
        world.checkpoint(fill("one"))
        chosen = world.head.record.manifest
        world.checkpoint(fill("two"))
        head = lineage.rollback(world.chain, world.head, chosen, TIME, attempt="r-1")
        assert (head.record.manifest, head.record.number) == (chosen, 2)
        assert lineage.rollback(world.chain, head, chosen, TIME, attempt="r-1") == head
        with pytest.raises(Superseded, match="rollback"):
            lineage.complete(world.chain, head, 1, "pod-1", TIME)
        assert lineage.grant(world.chain, head, "pod-1", "node", TIME).record.epoch == 2
        world.repository.store.delete("commits/" + "5".zfill(20))
        reset = lineage.rollback(world.chain, head, None, TIME)
        assert reset.record.manifest is None
        world.head = reset
        assert world.grant("pod-2").record.manifest is None


class TestPending:
    KEY = "pending/1-" + "0" * 32

    def leave(self, world: RepositoryFixture, **change: Any) -> Offer:
        offer = world.offer(fill())
        world.repository.store.delete(manifest_key(offer.name))
        pending = replace(Pending(offer.attempt, 1, "pod-1", "Shutdown", False, offer.manifest_bytes), **change)
        world.repository.store.put_new(self.KEY, lineage.pending_bytes(pending))
        return offer

    def adopt(self, world: RepositoryFixture) -> Any:
        return lineage.adopt_pending(world.repository, world.chain, world.head, self.KEY, TIME)

    def test_it_is_committed_and_removed(self, world: RepositoryFixture) -> None:
        offer = self.leave(world)
        assert list(lineage.find_pending(world.repository, 1)) == [self.KEY]
        assert list(lineage.find_pending(world.repository, 11)) == []
        head = self.adopt(world)
        assert head.record.manifest.name == offer.name
        assert head.record.trigger == "Shutdown"
        assert world.repository.store.head(self.KEY) is None
        world.head = head
        assert self.adopt(world) is None

    def test_only_a_completion(self, world: RepositoryFixture) -> None:
        world.checkpoint(fill())
        self.leave(world, completed=True, manifest=b"")
        assert self.adopt(world).record.kind == "completed"

    def test_with_its_completion(self, world: RepositoryFixture) -> None:
        self.leave(world, completed=True)
        head = self.adopt(world)
        assert head.record.kind == "completed"
        assert head.record.manifest is not None

    def test_nothing_is_told(self, world: RepositoryFixture) -> None:
        self.leave(world, manifest=b"")
        assert self.adopt(world) is None

    @pytest.mark.parametrize("change", [{"epoch": 7}, {"pod_uid": "pod-x"}])
    def test_what_does_not_count_is_removed(self, world: RepositoryFixture, change: dict[str, Any]) -> None:
        self.leave(world, **change)
        assert self.adopt(world) is None
        assert keys(world.repository.store, "pending/") == []
        assert world.chain.head() == world.head

    def test_after_a_rollback_it_does_not_count(self, world: RepositoryFixture) -> None:
        world.checkpoint(fill())
        self.leave(world)
        world.head = lineage.rollback(world.chain, world.head, None, TIME)
        assert self.adopt(world) is None
        assert keys(world.repository.store, "pending/") == []
        assert world.chain.head() == world.head

    def test_a_forged_manifest_is_not_stored(self, world: RepositoryFixture) -> None:
        world.offer(fill())
        assert world.manifest is not None
        other = seal_manifest(replace(world.manifest, agent="other"), world.repository.key, bytes(12))
        self.leave(world, manifest=other)
        with pytest.raises(IntegrityError):
            self.adopt(world)
        assert world.repository.store.head(manifest_key(manifest_name(other))) is None

    def test_a_fault_at_every_call(self) -> None:
        """The adoption is asked again after each fault, and commits once."""
        for applied in (False, True):
            for position in range(1, 12):
                store = FaultyStore(MemoryStore())
                world = RepositoryFixture(store)
                offer = self.leave(world, completed=True)
                store.script = at({len(store.calls) + position: Fault(StoreUnavailable("fault"), applied)})
                for _ in range(3):
                    with contextlib.suppress(StoreUnavailable):
                        self.adopt(world)
                    store.script = calm
                    found = world.chain.head(world.head)
                    assert found is not None
                    world.head = found
                kinds = [each.record.kind for each in world.chain.back(world.head, 9)]
                assert kinds == ["completed", "checkpoint", "grant"]
                assert world.chain.record(2).attempt == offer.attempt
                assert keys(world.repository.store, "pending/") == []

    def test_bytes_come_back(self) -> None:
        pending = Pending("a", 1, "p", "t", True, b"manifest")
        assert lineage.pending_of(lineage.pending_bytes(pending), "x") == pending

    @pytest.mark.parametrize(
        "content", [b"", b"SVPNTPD1", b"SVPNTPD1\0\0\0\5{}", b"SVPNTPD1\0\0\0\2{}", b"SVPNTPD2\0\0\0\2{}", b"\0" * 40]
    )
    def test_no_pending_commits(self, content: bytes) -> None:
        with pytest.raises(IntegrityError):
            lineage.pending_of(content, "x")

    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused(self, content: bytes) -> None:
        with contextlib.suppress(SavepointError):
            lineage.pending_of(b"SVPNTPD1" + content, "x")
            raise AssertionError("bytes that nobody left were read")
