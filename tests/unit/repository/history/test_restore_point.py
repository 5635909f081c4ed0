"""The checkpoint that a head restores. A damaged chain is an error, never an empty answer."""

from typing import Any

import pytest
from savepoint.contract.control_protocol import CheckpointRef, ObjectName
from savepoint.errors import IntegrityError, StoreUnavailable
from savepoint.repository.format import commit
from savepoint.repository.format.commit import ChainRecord, ManifestName
from savepoint.repository.format.object_keys import commit_key
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.restore_point import checkpoint_ref, restore_point

from tests.fakes.repository_fixture import TIME
from tests.fakes.store import Fault, FaultyStore, MemoryStore, always


def named(number: int) -> ManifestName:
    return ManifestName(f"{number:064x}", 100 + number)


class History:
    """A chain in memory that tests extend record by record."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.chain = Chain(self.store, "default", "coder")
        self.head: ChainRecord | None = None
        self.grant()

    def grant(self) -> ChainRecord:
        record = commit.grant(self.head, "default", "coder", pod_uid="pod", node="node", time=TIME)
        return self.append(record)

    def checkpoint(self, number: int) -> ChainRecord:
        assert self.head is not None
        record = commit.checkpoint(
            self.head, attempt=f"a{number}", manifest=named(number), time=TIME, trigger="Interval"
        )
        return self.append(record)

    def rollback(self, manifest: ManifestName | None) -> ChainRecord:
        assert self.head is not None
        return self.append(commit.rollback(self.head, attempt=None, manifest=manifest, time=TIME))

    def complete(self) -> ChainRecord:
        assert self.head is not None
        return self.append(commit.completed(self.head, time=TIME))

    def append(self, record: commit.CommitRecord) -> ChainRecord:
        self.head = self.chain.append(record)
        return self.head

    def restored(self) -> CheckpointRef | None:
        assert self.head is not None
        return restore_point(self.chain, self.head)


@pytest.fixture
def history() -> History:
    return History()


def ref(number: int, sequence: int, *, rolled_back: bool = False) -> CheckpointRef:
    manifest = named(number)
    name = ObjectName(manifest.name, manifest.size)
    return CheckpointRef(f"coder-{number}", number, sequence, TIME, name, rolled_back)


def test_a_new_agent_has_no_restore_point(history: History) -> None:
    assert history.restored() is None


def test_the_newest_checkpoint_is_the_restore_point(history: History) -> None:
    history.checkpoint(1)
    history.checkpoint(2)
    assert history.restored() == ref(2, 3)


def test_a_grant_keeps_the_restore_point(history: History) -> None:
    history.checkpoint(1)
    history.grant()
    history.grant()
    assert history.restored() == ref(1, 2)


def test_a_completed_run_starts_fresh_with_the_next_grant(history: History) -> None:
    history.checkpoint(1)
    history.complete()
    assert history.restored() == ref(1, 2)
    history.grant()
    assert history.restored() is None


def test_the_restore_point_after_a_rollback_has_the_rollbacks_sequence(history: History) -> None:
    history.checkpoint(1)
    history.checkpoint(2)
    history.rollback(named(1))
    assert history.restored() == ref(1, 4, rolled_back=True)
    history.grant()
    assert history.restored() == ref(1, 4, rolled_back=True)


def test_there_is_no_restore_point_after_a_reset(history: History) -> None:
    history.checkpoint(1)
    history.rollback(None)
    assert history.restored() is None


def test_a_rollback_reaches_back_any_distance(history: History) -> None:
    history.checkpoint(1)
    for number in range(2, 1100):
        history.checkpoint(number)
    head = history.rollback(named(1))
    assert history.restored() == ref(1, head.record.sequence, rolled_back=True)


def test_only_the_needed_records_are_read(history: History) -> None:
    for number in range(1, 50):
        history.checkpoint(number)
    history.grant()
    faulty = FaultyStore(history.store)
    assert history.head is not None
    assert restore_point(Chain(faulty, "default", "coder"), history.head) == ref(49, 50)
    assert len(faulty.calls) == 1


class TestDamage:
    def test_a_missing_record_is_an_error(self, history: History) -> None:
        history.checkpoint(1)
        history.grant()
        history.grant()
        history.store.delete(commit_key(2))
        with pytest.raises(IntegrityError, match="gap") as caught:
            history.restored()
        assert caught.value.object_key == commit_key(2)

    def test_a_damaged_record_is_an_error(self, history: History) -> None:
        history.checkpoint(1)
        history.grant()
        history.store.objects[commit_key(2)] = b"{}"
        with pytest.raises(IntegrityError) as caught:
            history.restored()
        assert caught.value.object_key == commit_key(2)

    def test_a_manifest_that_no_checkpoint_committed_is_an_error(self, history: History) -> None:
        history.checkpoint(1)
        history.rollback(named(7))
        with pytest.raises(IntegrityError, match="no checkpoint record") as caught:
            history.restored()
        assert caught.value.object_key == commit_key(3)

    def test_a_store_that_is_unavailable_is_an_error(self, history: History) -> None:
        history.checkpoint(1)
        history.grant()
        assert history.head is not None
        faulty = FaultyStore(history.store, always("get", Fault(StoreUnavailable("down"))))
        with pytest.raises(StoreUnavailable):
            restore_point(Chain(faulty, "default", "coder"), history.head)


def test_a_record_names_the_checkpoint_that_it_committed(history: History) -> None:
    head = history.checkpoint(1)
    assert checkpoint_ref(head) == ref(1, 2)
    assert checkpoint_ref(head, sequence=9) == ref(1, 9)


@pytest.mark.parametrize("kind", ["grant", "reset"])
def test_a_record_that_committed_no_checkpoint_is_refused(history: History, kind: str) -> None:
    head: Any = history.head if kind == "grant" else history.rollback(None)
    with pytest.raises(IntegrityError, match="names no checkpoint") as caught:
        checkpoint_ref(head)
    assert caught.value.object_key == commit_key(head.record.sequence)
