from typing import Any

import pytest
from savepoint.errors import IntegrityError, ObjectMissing, RollbackDetected, StoreDenied, StoreUnavailable, Superseded
from savepoint.repository.format import commit
from savepoint.repository.format.commit import ChainRecord, ManifestName
from savepoint.repository.format.object_keys import commit_key
from savepoint.repository.history.chain import Chain

from tests.fakes.repository_fixture import TIME
from tests.fakes.store import Fault, FaultyStore, MemoryStore, always, at


def chain_of(store: Any) -> Chain:
    return Chain(store, "default", "coder")


def grown(store: MemoryStore, length: int, agent: str = "coder", node: str = "node") -> list[ChainRecord]:
    """Write a chain of one grant and then checkpoints; return all its heads."""
    chain = Chain(store, "default", agent)
    heads = [chain.append(commit.grant(None, "default", agent, pod_uid="pod", node=node, time=TIME))]
    while len(heads) < length:
        heads.append(chain.append(next_record(heads[-1])))
    return heads


def next_record(head: ChainRecord, name: str = "") -> commit.CommitRecord:
    number = head.record.number + 1
    manifest = ManifestName(f"{number:064x}", 100)
    return commit.checkpoint(head, attempt=name or f"a{number}", manifest=manifest, time=TIME, trigger="Interval")


def test_an_empty_chain_has_no_records() -> None:
    chain = chain_of(MemoryStore())
    assert chain.head() is None
    assert chain.find(1) is None
    assert chain.find_attempt("a", None) is None
    with pytest.raises(ObjectMissing):
        chain.record(1)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 40])
def test_the_head_is_found_without_a_pin(length: int) -> None:
    store = FaultyStore(MemoryStore())
    heads = grown(store, length)  # type: ignore[arg-type]
    store.calls.clear()
    assert chain_of(store).head() == heads[-1]
    assert len(store.calls) <= 16
    assert {call.method for call in store.calls} == {"get"}, "nothing is listed"


def test_the_head_is_found_from_any_pin() -> None:
    store = MemoryStore()
    heads = grown(store, 12)
    for pin in heads:
        assert chain_of(store).head(pin) == heads[-1]


def test_a_missing_pinned_record_is_detected() -> None:
    store = MemoryStore()
    heads = grown(store, 5)
    store.delete(commit_key(5))
    with pytest.raises(RollbackDetected, match="missing"):
        chain_of(store).head(heads[-1])
    store.objects.clear()
    with pytest.raises(RollbackDetected):
        chain_of(store).head(heads[-1])


def test_another_record_in_place_of_the_pinned_one_is_detected() -> None:
    store, other = MemoryStore(), MemoryStore()
    heads = grown(store, 5)
    grown(other, 5, node="elsewhere")
    store.objects = dict(other.objects)
    with pytest.raises(RollbackDetected, match="not the pinned") as caught:
        chain_of(store).head(heads[-1])
    assert caught.value.object_key == commit_key(5)


def test_a_forked_chain_is_found() -> None:
    store, fork = MemoryStore(), MemoryStore()
    heads = grown(store, 5)
    grown(fork, 7, node="elsewhere")
    store.objects[commit_key(6)] = fork.objects[commit_key(6)]
    with pytest.raises(IntegrityError, match="previous"):
        chain_of(store).head(heads[-1])
    with pytest.raises(IntegrityError, match="previous"):
        chain_of(store).head()


def test_a_record_of_another_agent_or_sequence_is_refused() -> None:
    store, other = MemoryStore(), MemoryStore()
    grown(store, 3)
    grown(other, 4, agent="other")
    store.objects[commit_key(4)] = other.objects[commit_key(4)]
    with pytest.raises(IntegrityError, match="another agent or sequence"):
        chain_of(store).head()
    store.objects[commit_key(4)] = store.objects[commit_key(3)]
    with pytest.raises(IntegrityError, match="another agent or sequence"):
        chain_of(store).head()


def test_a_damaged_record_names_itself() -> None:
    store = MemoryStore()
    grown(store, 3)
    store.objects[commit_key(2)] = b"{}"
    with pytest.raises(IntegrityError) as caught:
        chain_of(store).record(2)
    assert caught.value.object_key == commit_key(2)


def test_the_chain_is_walked_back() -> None:
    store = MemoryStore()
    heads = grown(store, 6)
    chain = chain_of(store)
    assert list(chain.back(heads[-1], 3)) == heads[:2:-1]
    assert list(chain.back(heads[-1], 100)) == heads[::-1]
    assert chain.find_attempt("a3", heads[-1]) == heads[3]
    assert chain.find_attempt("a3", heads[-1], depth=2) is None
    assert chain.find_attempt("never", heads[-1]) is None
    store.delete(commit_key(3))
    with pytest.raises(IntegrityError, match="gap"):
        list(chain.back(heads[-1], 100))


class TestAppend:
    def test_a_record_that_lost_the_race_for_its_sequence_is_superseded(self) -> None:
        store = MemoryStore()
        [head] = grown(store, 1)
        chain_of(store).append(next_record(head, "theirs"))
        with pytest.raises(Superseded, match="sequence 2"):
            chain_of(store).append(next_record(head, "ours"))

    def test_our_own_record_is_a_success(self) -> None:
        store = MemoryStore()
        [head] = grown(store, 1)
        assert chain_of(store).append(next_record(head)) == chain_of(store).append(next_record(head))

    def test_a_lost_response_is_resolved_by_reading_back(self) -> None:
        store = MemoryStore()
        [head] = grown(store, 1)
        faulty = FaultyStore(store, at({1: Fault(StoreUnavailable("lost"), applied=True)}))
        assert chain_of(faulty).append(next_record(head)) == chain_of(store).head(head)

    def test_a_lost_response_does_not_hide_a_lost_race(self) -> None:
        store = MemoryStore()
        [head] = grown(store, 1)
        chain_of(store).append(next_record(head, "theirs"))
        faulty = FaultyStore(store, at({1: Fault(StoreUnavailable("lost"))}))
        with pytest.raises(Superseded):
            chain_of(faulty).append(next_record(head, "ours"))

    def test_an_unwritten_record_is_not_reported_as_written(self) -> None:
        store = MemoryStore()
        [head] = grown(store, 1)
        faulty = FaultyStore(store, at({1: Fault(StoreUnavailable("down"))}))
        with pytest.raises(StoreUnavailable):
            chain_of(faulty).append(next_record(head))
        assert chain_of(store).head(head) == head

    def test_with_an_unavailable_store_it_stays_unknown_whether_the_record_was_written(self) -> None:
        store = MemoryStore()
        [head] = grown(store, 1)
        faulty = FaultyStore(store, lambda call: Fault(StoreUnavailable("down"), applied=True))
        with pytest.raises(StoreUnavailable):
            chain_of(faulty).append(next_record(head))

    @pytest.mark.parametrize("error", [StoreUnavailable("down"), StoreDenied("no")])
    def test_the_head_is_unknown_if_a_record_cannot_be_read(self, error: Any) -> None:
        store = MemoryStore()
        heads = grown(store, 3)
        for position in range(1, 4):
            with pytest.raises(type(error)):
                chain_of(FaultyStore(store, at({position: Fault(error)}))).head()
        with pytest.raises(type(error)):
            chain_of(FaultyStore(store, always("get", Fault(error)))).head(heads[0])
