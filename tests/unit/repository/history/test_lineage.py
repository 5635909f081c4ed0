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
from savepoint.repository.history.lineage import Pending, UploadedCheckpoint
from savepoint.repository.write.source import MemorySource
from savepoint.repository.write.writer import CheckpointWriter

from tests.fakes.repository_fixture import TIME, RepositoryFixture, attempt, content, keys
from tests.fakes.store import Call, Fault, FaultyStore, MemoryStore, at


def fill(seed: str = "one") -> Any:
    def add(writer: CheckpointWriter) -> None:
        writer.add_blob("state", "Custom", MemorySource(content(seed, 5000)))

    return add


def no_fault(_: Call) -> None:
    """A script without faults."""


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def repo(store: FaultyStore) -> RepositoryFixture:
    return RepositoryFixture(store)


class TestGrant:
    def test_the_same_pod_gets_the_same_epoch(self, repo: RepositoryFixture) -> None:
        assert lineage.grant(repo.chain, repo.head, "pod-1", "node", TIME) == repo.head
        repo.checkpoint(fill())
        assert lineage.grant(repo.chain, repo.head, "pod-1", "node", TIME) == repo.head

    def test_another_pod_gets_the_next_epoch(self, repo: RepositoryFixture) -> None:
        offer = repo.checkpoint(fill())
        head = lineage.grant(repo.chain, repo.head, "pod-2", "node-2", TIME)
        assert (head.record.epoch, head.record.pod_uid, head.record.node) == (2, "pod-2", "node-2")
        assert head.record.manifest is not None
        assert head.record.manifest.name == offer.name

    def test_the_grant_after_a_completion_starts_fresh(self, repo: RepositoryFixture) -> None:
        repo.checkpoint(fill())
        head = lineage.complete(repo.chain, repo.head, 1, "pod-1", TIME)
        fresh = lineage.grant(repo.chain, head, "pod-1", "node", TIME)
        assert (fresh.record.epoch, fresh.record.manifest) == (2, None)

    def test_only_one_of_two_pods_is_granted_the_epoch(self, repo: RepositoryFixture) -> None:
        head = repo.head
        lineage.grant(repo.chain, head, "pod-2", "node", TIME)
        with pytest.raises(Superseded):
            lineage.grant(repo.chain, head, "pod-3", "node", TIME)


class TestCommit:
    def test_a_checkpoint_exists_once_its_record_does(self, repo: RepositoryFixture) -> None:
        offer = repo.offer(fill())
        assert repo.chain.head() == repo.head
        head = repo.commit(offer)
        assert head.record.name == "coder-1"
        assert repo.chain.head() == head

    def test_an_attempt_commits_once(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        offer = repo.offer(fill())
        before = repo.head
        head = repo.commit(offer)
        assert repo.commit(offer) == head
        repo.head = before
        assert repo.commit(offer) == head, "also from an old view of the chain"
        assert len(keys(repo.repository.store, "commits/")) == 2

    def test_an_old_attempt_gets_its_record_again(self, repo: RepositoryFixture) -> None:
        offer = repo.offer(fill())
        head = repo.commit(offer)
        for number in range(3):
            repo.checkpoint(fill(str(number)))
        newest = repo.grant("pod-2")
        again = lineage.commit_checkpoint(
            repo.repository, repo.chain, newest, offer, epoch=1, pod_uid="pod-1", time=TIME, trigger="Interval"
        )
        assert again == head
        repo.repository.store.delete(manifest_key(offer.name))
        again = lineage.commit_checkpoint(
            repo.repository, repo.chain, newest, offer, epoch=1, pod_uid="pod-1", time=TIME, trigger="Interval"
        )
        assert again == head, "the manifest may be collected by then"

    def test_a_superseded_epoch_commits_nothing(self, repo: RepositoryFixture) -> None:
        offer = repo.offer(fill())
        old = repo.head
        repo.grant("pod-2")
        for head in (old, repo.head):
            with pytest.raises(Superseded):
                lineage.commit_checkpoint(
                    repo.repository, repo.chain, head, offer, epoch=1, pod_uid="pod-1", time=TIME, trigger="Interval"
                )
        assert repo.chain.head() == repo.head

    def test_another_pod_cannot_commit_in_the_epoch(self, repo: RepositoryFixture) -> None:
        with pytest.raises(Superseded):
            lineage.commit_checkpoint(
                repo.repository,
                repo.chain,
                repo.head,
                repo.offer(fill()),
                epoch=1,
                pod_uid="pod-x",
                time=TIME,
                trigger="Interval",
            )

    def test_a_pod_that_was_rolled_back_commits_nothing(self, repo: RepositoryFixture) -> None:
        repo.checkpoint(fill())
        offer = repo.offer(fill("two"))
        repo.head = lineage.rollback(repo.chain, repo.head, None, TIME)
        with pytest.raises(Superseded, match="rollback"):
            repo.commit(offer)

    def test_only_a_grant_follows_a_completion(self, repo: RepositoryFixture) -> None:
        repo.commit(repo.offer(fill()), completed=True)
        offer = repo.offer(fill("two"))
        with pytest.raises(Superseded, match="completed"):
            repo.commit(offer)

    def test_a_missing_manifest_is_not_committed(self, repo: RepositoryFixture) -> None:
        with pytest.raises(ObjectMissing):
            repo.commit(UploadedCheckpoint(attempt(9), "ab" * 32, 500))
        with pytest.raises(ObjectMissing):
            repo.commit(UploadedCheckpoint(attempt(9), "ab" * 32, 500), completed=True)

    def test_a_manifest_of_another_size_is_not_committed(self, repo: RepositoryFixture) -> None:
        offer = repo.offer(fill())
        with pytest.raises(IntegrityError, match="its record says"):
            repo.commit(replace(offer, size=offer.size + 1))

    def test_a_manifest_of_another_attempt_is_not_committed(self, repo: RepositoryFixture) -> None:
        offer = repo.offer(fill())
        with pytest.raises(IntegrityError, match="another attempt"):
            repo.commit(replace(offer, attempt=attempt(9)))

    def test_a_manifest_of_another_epoch_is_not_committed(self, repo: RepositoryFixture) -> None:
        repo.offer(fill())
        assert repo.manifest is not None
        name, size = repo.repository.write_manifest(replace(repo.manifest, epoch=7, attempt=attempt(8)))
        with pytest.raises(IntegrityError, match="epoch 7"):
            repo.commit(UploadedCheckpoint(attempt(8), name, size))

    def test_a_missing_or_truncated_pack_is_not_committed(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        offer = repo.offer(fill())
        [pack] = offer.packs
        key = pack_key(pack.name)
        whole = repo.repository.store.get(key, max_bytes=1 << 20)
        repo.repository.store.delete(key)
        with pytest.raises(IntegrityError, match="not in the store") as caught:
            repo.commit(offer)
        assert caught.value.object_key == key
        repo.repository.store.put_new(key, whole[:-1])
        with pytest.raises(IntegrityError, match="bytes"):
            repo.commit(offer)

    def test_packs_of_the_parent_are_not_checked_again(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        repo.checkpoint(fill())
        store.calls.clear()

        def more(writer: CheckpointWriter) -> None:
            fill()(writer)
            writer.add_blob("more", "Custom", MemorySource(b"more"))

        offer = repo.offer(more)
        store.calls.clear()
        repo.commit(offer)
        assert repo.manifest is not None
        assert len(repo.manifest.packs) == 2
        assert [call.method for call in store.calls].count("head") == 1

    def test_with_a_missing_parent_every_pack_is_checked(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        first = repo.checkpoint(fill())
        offer = repo.offer(fill("two"))
        repo.repository.store.delete(manifest_key(first.name))
        repo.commit(offer)

    def test_an_attempt_committed_twice_at_once_has_one_record(
        self, repo: RepositoryFixture, store: FaultyStore
    ) -> None:
        """Both calls read the same head; the later one finds the record of its own attempt, with another time."""
        offer = repo.offer(fill())

        def commit_at(time: str) -> Any:
            return lineage.commit_checkpoint(
                repo.repository, repo.chain, repo.head, offer, epoch=1, pod_uid="pod-1", time=time, trigger="t"
            )

        first: list[Any] = []

        def commit_first(call: Call) -> None:
            if call.method == "put_new" and not first:
                first.append(None)
                first[0] = commit_at("2027-01-01T00:00:00.000000Z")

        store.script = commit_first
        assert commit_at(TIME) == first[0]

    def test_the_search_for_an_attempt_is_bounded(self, repo: RepositoryFixture, store: FaultyStore) -> None:
        repo.grant("pod-2")
        first = repo.offer(fill())
        repo.commit(first)
        for number in range(70):
            repo.checkpoint(fill(str(number % 2)))
        store.calls.clear()
        with pytest.raises(IntegrityError, match="another attempt"):
            repo.commit(replace(first, attempt=attempt(999)))
        assert len(store.calls) < 70

    def test_an_offer_that_lost_the_race_for_its_sequence_is_superseded(self, repo: RepositoryFixture) -> None:
        before = repo.head
        one, two = repo.offer(fill("one")), repo.offer(fill("two"))
        repo.commit(one)
        repo.head = before
        with pytest.raises(Superseded, match="faster"):
            repo.commit(two)

    def test_a_run_is_completed_together_with_its_last_checkpoint(self, repo: RepositoryFixture) -> None:
        offer = repo.offer(fill())
        head = repo.commit(offer, completed=True)
        assert (head.record.kind, head.record.sequence) == ("completed", 3)
        assert repo.commit(offer, completed=True) == head

    def test_a_run_is_completed_after_its_last_checkpoint(self, repo: RepositoryFixture) -> None:
        offer = repo.offer(fill())
        repo.commit(offer)
        head = repo.commit(offer, completed=True)
        assert head.record.kind == "completed"
        assert repo.commit(offer).record.kind == "checkpoint"

    @pytest.mark.parametrize("applied", [False, True])
    @pytest.mark.parametrize("completed", [False, True])
    def test_a_commit_repeated_after_a_fault_at_any_call_leaves_one_record(
        self, applied: bool, completed: bool
    ) -> None:
        """After any lost call, repeating the commit ends with one record of the attempt."""
        position = 0
        while True:
            position += 1
            store = FaultyStore(MemoryStore())
            repo = RepositoryFixture(store)
            offer = repo.offer(fill())
            begin = len(store.calls)
            store.script = at({begin + position: Fault(StoreUnavailable("fault"), applied)})
            hit = False
            for _ in range(3):
                try:
                    head = repo.commit(offer, completed=completed)
                except StoreUnavailable:
                    hit = True
                    store.script = no_fault
                    found = repo.chain.head(repo.head)
                    assert found is not None
                    repo.head = found
                else:
                    break
            else:
                raise AssertionError("the commit never succeeded")
            made = len(store.calls)
            store.script = no_fault
            assert repo.chain.head() == head
            assert [each.record.kind for each in repo.chain.back(head, 9)][::-1] == (
                ["grant", "checkpoint"] + ["completed"] * completed
            )
            if not hit and made < begin + position:
                break
        assert position > 3


class TestCompleteAndRollback:
    def test_a_run_is_completed_once(self, repo: RepositoryFixture) -> None:
        repo.checkpoint(fill())
        head = lineage.complete(repo.chain, repo.head, 1, "pod-1", TIME)
        with pytest.raises(Superseded):
            lineage.complete(repo.chain, head, 1, "pod-1", TIME)
        with pytest.raises(Superseded):
            lineage.complete(repo.chain, repo.head, 2, "pod-1", TIME)

    def test_a_rollback_chooses_a_manifest_and_a_reset_chooses_none(self, repo: RepositoryFixture) -> None:
        repo.checkpoint(fill("one"))
        chosen = repo.head.record.manifest
        repo.checkpoint(fill("two"))
        head = lineage.rollback(repo.chain, repo.head, chosen, TIME, attempt="r-1")
        assert (head.record.manifest, head.record.number) == (chosen, 2)
        assert lineage.rollback(repo.chain, head, chosen, TIME, attempt="r-1") == head
        with pytest.raises(Superseded, match="rollback"):
            lineage.complete(repo.chain, head, 1, "pod-1", TIME)
        assert lineage.grant(repo.chain, head, "pod-1", "node", TIME).record.epoch == 2
        repo.repository.store.delete("commits/" + "5".zfill(20))
        reset = lineage.rollback(repo.chain, head, None, TIME)
        assert reset.record.manifest is None
        repo.head = reset
        assert repo.grant("pod-2").record.manifest is None


class TestPending:
    KEY = "pending/1-" + "0" * 32

    def leave(self, repo: RepositoryFixture, **change: Any) -> UploadedCheckpoint:
        offer = repo.offer(fill())
        repo.repository.store.delete(manifest_key(offer.name))
        pending = replace(Pending(offer.attempt, 1, "pod-1", "Shutdown", False, offer.manifest_bytes), **change)
        repo.repository.store.put_new(self.KEY, lineage.pending_bytes(pending))
        return offer

    def commit_pending(self, repo: RepositoryFixture) -> Any:
        return lineage.commit_pending(repo.repository, repo.chain, repo.head, self.KEY, TIME)

    def test_a_pending_commit_is_committed_and_deleted(self, repo: RepositoryFixture) -> None:
        offer = self.leave(repo)
        assert list(lineage.find_pending(repo.repository, 1)) == [self.KEY]
        assert list(lineage.find_pending(repo.repository, 11)) == []
        head = self.commit_pending(repo)
        assert head.record.manifest.name == offer.name
        assert head.record.trigger == "Shutdown"
        assert repo.repository.store.head(self.KEY) is None
        repo.head = head
        assert self.commit_pending(repo) is None

    def test_a_pending_completion_needs_no_checkpoint(self, repo: RepositoryFixture) -> None:
        repo.checkpoint(fill())
        self.leave(repo, completed=True, manifest=b"")
        assert self.commit_pending(repo).record.kind == "completed"

    def test_a_pending_checkpoint_is_committed_with_its_completion(self, repo: RepositoryFixture) -> None:
        self.leave(repo, completed=True)
        head = self.commit_pending(repo)
        assert head.record.kind == "completed"
        assert head.record.manifest is not None

    def test_an_empty_pending_commit_has_no_effect(self, repo: RepositoryFixture) -> None:
        self.leave(repo, manifest=b"")
        assert self.commit_pending(repo) is None

    @pytest.mark.parametrize("change", [{"epoch": 7}, {"pod_uid": "pod-x"}])
    def test_an_invalid_pending_commit_is_deleted(self, repo: RepositoryFixture, change: dict[str, Any]) -> None:
        self.leave(repo, **change)
        assert self.commit_pending(repo) is None
        assert keys(repo.repository.store, "pending/") == []
        assert repo.chain.head() == repo.head

    def test_a_pending_commit_is_invalid_after_a_rollback(self, repo: RepositoryFixture) -> None:
        repo.checkpoint(fill())
        self.leave(repo)
        repo.head = lineage.rollback(repo.chain, repo.head, None, TIME)
        assert self.commit_pending(repo) is None
        assert keys(repo.repository.store, "pending/") == []
        assert repo.chain.head() == repo.head

    def test_a_forged_manifest_is_not_stored(self, repo: RepositoryFixture) -> None:
        repo.offer(fill())
        assert repo.manifest is not None
        other = seal_manifest(replace(repo.manifest, agent="other"), repo.repository.key, bytes(12))
        self.leave(repo, manifest=other)
        with pytest.raises(IntegrityError):
            self.commit_pending(repo)
        assert repo.repository.store.head(manifest_key(manifest_name(other))) is None

    def test_a_pending_commit_repeated_after_a_fault_at_any_call_commits_once(self) -> None:
        """The pending commit is repeated after each fault, and commits once."""
        for applied in (False, True):
            for position in range(1, 12):
                store = FaultyStore(MemoryStore())
                repo = RepositoryFixture(store)
                offer = self.leave(repo, completed=True)
                store.script = at({len(store.calls) + position: Fault(StoreUnavailable("fault"), applied)})
                for _ in range(3):
                    with contextlib.suppress(StoreUnavailable):
                        self.commit_pending(repo)
                    store.script = no_fault
                    found = repo.chain.head(repo.head)
                    assert found is not None
                    repo.head = found
                kinds = [each.record.kind for each in repo.chain.back(repo.head, 9)]
                assert kinds == ["completed", "checkpoint", "grant"]
                assert repo.chain.record(2).attempt == offer.attempt
                assert keys(repo.repository.store, "pending/") == []

    def test_pending_bytes_survive_a_round_trip(self) -> None:
        pending = Pending("a", 1, "p", "t", True, b"manifest")
        assert lineage.pending_of(lineage.pending_bytes(pending), "x") == pending

    @pytest.mark.parametrize(
        "content", [b"", b"SVPNTPD1", b"SVPNTPD1\0\0\0\5{}", b"SVPNTPD1\0\0\0\2{}", b"SVPNTPD2\0\0\0\2{}", b"\0" * 40]
    )
    def test_bytes_that_are_not_pending_commits_are_refused(self, content: bytes) -> None:
        with pytest.raises(IntegrityError):
            lineage.pending_of(content, "x")

    @given(st.binary(max_size=200))
    def test_arbitrary_bytes_are_refused(self, content: bytes) -> None:
        with contextlib.suppress(SavepointError):
            lineage.pending_of(b"SVPNTPD1" + content, "x")
            raise AssertionError("arbitrary bytes were accepted")
