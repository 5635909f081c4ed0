"""A new operator process knows only what store and cluster say; invariants I3 and I4 hold across restarts."""

import asyncio

import pytest
from savepoint.contract.control_protocol import (
    Ack,
    AttemptState,
    Checkpoint,
    Committed,
    Grant,
    Hello,
    Refused,
    Released,
    Result,
    Stop,
    Wait,
    Welcome,
)
from savepoint.errors import ObjectMissing, Unavailable
from savepoint.repository.format import commit
from savepoint.repository.format.commit import ManifestName
from savepoint.repository.format.manifest import MAX_MANIFEST_BYTES
from savepoint.repository.history.chain import Chain
from savepoint.repository.history.lineage import Pending, pending_bytes
from savepoint_operator.model.views import AgentRef, NodeState, PodState

from tests.fakes.control_harness import AGENT, ControlHarness, attempt, until


def leave_behind(
    harness: ControlHarness, welcome: Welcome, number: int, *, completed: bool = False, damage: bool = False
) -> str:
    """Leave a finished checkpoint as a pending object, as a sidecar does when no operator answers."""
    store = harness.repository().store
    offer = harness.offer(attempt(number), welcome.epoch)
    content = store.get(f"manifests/{offer.manifest.name}", max_bytes=MAX_MANIFEST_BYTES)
    store.delete(f"manifests/{offer.manifest.name}")
    if damage:
        content = content[:-1] + bytes([content[-1] ^ 1])
    pending = Pending(attempt(number), welcome.epoch, "a", "Shutdown", completed, content)
    store.put_new(welcome.pending_key, pending_bytes(pending))
    return offer.manifest.name


async def test_a_deferred_commit_is_adopted_before_the_next_grant(harness: ControlHarness) -> None:
    await harness.grant("a")
    _, welcome = await harness.sidecar("a")
    server = harness.server
    assert server is not None
    await server.stop()
    name = leave_behind(harness, welcome, 1)
    harness.end("a")
    await harness.lead()  # it does not know the pending key
    granted = await harness.grant("b")  # at once: a pending checkpoint is always a pod's last
    assert granted.parent is not None
    assert (granted.parent.manifest.name, granted.parent.name) == (name, "coder-1")
    assert harness.chain() == [("grant", 1, 1), ("checkpoint", 2, 1), ("grant", 3, 2)]
    assert [each.record.trigger for each in harness.recorder.calls_of("committed")] == ["Shutdown"]
    (contents,) = harness.recorder.calls_of("described")
    manifest = harness.repository().read_manifest(name, granted.parent.manifest.size)
    assert (contents.logical_bytes, contents.taken_at) == (manifest.size.logical, manifest.created)
    assert [each.name for each in contents.components] == [each.name for each in manifest.components]
    assert harness.repository().store.head(welcome.pending_key) is None
    assert ("list", "pending/") not in harness.store.calls


async def test_a_pending_checkpoint_of_the_same_epoch_is_adopted_on_reconnect(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    await pod.close()
    leave_behind(harness, welcome, 1)
    pod, again = await harness.sidecar("a", epoch=1)
    assert again.parent is not None
    assert again.parent.sequence == 2
    committed = await pod.request(harness.offer(attempt(2), 1), Committed)
    assert committed.checkpoint.sequence == 3


async def test_an_ordered_attempt_left_as_a_pending_checkpoint_has_not_failed(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Drain", 60)
    await pod.expect(Checkpoint)
    await harness.leave(pod)
    leave_behind(harness, welcome, 1)
    harness.end("a")
    harness.clock.advance(20)
    assert (await harness.grant("b")).parent is not None
    assert not harness.recorder.calls_of("failed")


async def test_a_pending_checkpoint_is_not_a_release_while_the_pod_runs(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    await harness.leave(pod)
    leave_behind(harness, welcome, 1)
    harness.pod("b")
    waiting = await harness.hello("b", "restore")
    await waiting.expect(Wait)
    harness.end("a", PodState.TERMINAL)
    assert (await waiting.granted()).parent is not None


async def test_a_release_recorded_by_an_earlier_leader_admits_the_successor_at_once(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.end("a")
    await harness.lead()
    harness.pod("b")
    waiting = await harness.hello("b", "restore")
    await waiting.expect(Wait)
    harness.pod_resolver.released_before.add("a")
    assert (await waiting.granted()).epoch == 2


async def test_an_attempt_reported_as_failed_but_committed_has_not_failed(
    harness: ControlHarness,
) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.send(harness.offer(attempt(1), 1))
    await until(lambda: harness.head().record.kind == "checkpoint")  # type: ignore[union-attr]
    await harness.lead()
    pod, _ = await harness.sidecar("a", epoch=1)
    await pod.request(Result(attempt(1), "Failed", "Unavailable", "the operator is unreachable"), Ack)
    await pod.request(Result(attempt(2), "Failed", "Unavailable", "another one"), Ack)
    assert [each.attempt for each in harness.recorder.calls_of("failed")] == [attempt(2)]


async def test_a_pending_completion_makes_the_next_pod_start_fresh(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    await harness.leave(pod)
    leave_behind(harness, welcome, 1, completed=True)
    harness.end("a")
    harness.clock.advance(20)
    assert (await harness.grant("b")).parent is None
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "checkpoint", "completed", "grant"]
    assert [each.record.kind for each in harness.recorder.calls_of("committed")] == ["checkpoint", "completed"]


async def test_a_damaged_pending_checkpoint_is_reported_and_does_not_block(
    harness: ControlHarness,
) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    first = await pod.request(harness.offer(attempt(1), 1), Committed)
    await harness.leave(pod)
    leave_behind(harness, welcome, 2, damage=True)
    pod, again = await harness.sidecar("a")
    assert again.pending_key != welcome.pending_key  # the first key is in use
    await harness.leave(pod)
    harness.end("a")
    harness.clock.advance(20)
    assert (await harness.grant("b")).parent == first.checkpoint
    assert {(each.attempt, each.reason) for each in harness.recorder.calls_of("failed")} == {
        (attempt(2), "IntegrityError")
    }


async def test_a_pending_checkpoint_left_after_a_rollback_does_not_undo_it(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    first = await pod.request(harness.offer(attempt(1), 1), Committed)
    await pod.request(harness.offer(attempt(2), 1), Committed)
    assert harness.server is not None
    await harness.server.orders.rollback(AGENT, attempt(9), first.checkpoint.sequence, "default")
    await harness.leave(pod)
    leave_behind(harness, welcome, 3)
    harness.end("a")
    harness.clock.advance(20)
    granted = await harness.grant("b")
    assert granted.parent is not None
    assert granted.parent.manifest == first.checkpoint.manifest


async def test_a_crash_between_commit_and_answer_is_answered_by_the_next_leader(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    harness.store.lose_answer_of = "nothing"
    await pod.send(offer)
    await until(lambda: harness.head().record.kind == "checkpoint")  # type: ignore[union-attr]
    assert harness.server is not None
    await harness.server.stop()
    await harness.lead()
    pod, welcome = await harness.sidecar("a", epoch=1, attempts=(AttemptState(attempt(1), "Committing"),))
    assert welcome.parent is not None
    committed = await pod.request(offer, Committed)
    assert committed.checkpoint == welcome.parent
    assert harness.chain() == [("grant", 1, 1), ("checkpoint", 2, 1)]


async def test_a_new_leader_counts_silence_from_zero(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.end("a", PodState.GONE, NodeState.LOST)
    harness.clock.advance(10_000)
    await harness.lead()
    harness.pod("b")
    pod = await harness.hello("b", "restore")
    await pod.expect(Wait)
    harness.clock.advance(44)
    await asyncio.sleep(0.05)
    assert len(harness.chain()) == 1
    harness.clock.advance(1)
    await pod.granted()


async def test_two_concurrent_operators_never_grant_one_epoch_twice(harness: ControlHarness) -> None:
    await harness.grant("a")
    harness.end("a")
    first = harness.server
    first_port = harness.port
    await harness.lead()
    harness.clock.advance(60)
    for uid in ("b", "c"):
        harness.pod(uid)
    pods = []
    for uid, port in (("b", first_port), ("c", harness.port)):
        pod = await harness.dial(uid, port=port)
        await pod.send(Hello("restore", 1, "0.1.0", "n1"))
        pods.append(pod)
    answers = [await pod.receive() for pod in pods]
    granted = [each for each in answers if isinstance(each, Grant)]
    assert granted
    assert [(kind, epoch) for kind, _, epoch in harness.chain()][:2] == [("grant", 1), ("grant", 2)]
    assert sum(epoch == 2 for _, _, epoch in harness.chain()) == 1
    assert first is not None
    await first.stop()


async def test_a_pod_that_thaws_after_a_takeover_cannot_commit_under_the_next_leader(
    harness: ControlHarness,
) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    await harness.leave(pod)
    harness.end("a", PodState.RUNNING, NodeState.LOST)
    assert harness.server is not None
    await harness.server.stop()
    await harness.lead()
    harness.clock.advance(60)
    assert (await harness.grant("b")).epoch == 2
    pod = await harness.hello("a", "sidecar", epoch=1, attempts=(AttemptState(offer.attempt, "Committing"),))
    assert (await pod.expect(Stop)).reason == "Fenced"
    restarted = await harness.hello("a", "restore", epoch=1)
    assert (await restarted.expect(Refused)).reason == "Fenced"
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "grant"]


@pytest.mark.parametrize("seed", range(10))
async def test_random_kills_and_lost_answers_keep_sequences_rising_and_lose_nothing_ready(
    harness: ControlHarness, seed: int
) -> None:
    """Run pods that commit in turn, while operators are killed and some answers of the store are lost."""
    harness.random.seed(seed)
    uid, number, ready = "", 0, 0
    for step in range(12):
        before = uid
        uid = f"p{step}"
        if before:
            harness.end(before)
        if harness.random.random() < 0.5:
            assert harness.server is not None
            await harness.server.stop()
            await harness.lead()
        if harness.random.random() < 0.3:
            harness.store.lose_answer_of = "commits/"
        harness.clock.advance(60)
        restored = (await harness.grant(uid)).parent
        assert (restored.sequence if restored else 0) >= ready
        pod, _ = await harness.sidecar(uid)
        for _ in range(harness.random.randrange(3)):
            number += 1
            offer = harness.offer(attempt(number), step + 1)
            if harness.random.random() < 0.3:
                harness.store.lose_answer_of = "commits/"
            ready = (await pod.request(offer, Committed)).checkpoint.sequence
        await harness.leave(pod)
    chain = harness.chain()
    assert [sequence for _, sequence, _ in chain] == list(range(1, len(chain) + 1))
    assert [epoch for kind, _, epoch in chain if kind == "grant"] == list(range(1, 13))
    assert [epoch for _, _, epoch in chain] == sorted(epoch for _, _, epoch in chain)


async def test_collection_deletes_unneeded_objects_after_the_grace_period(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    for number in (1, 2, 3):
        await pod.request(harness.offer(attempt(number), 1), Committed)
    assert harness.server is not None
    orders = harness.server.orders
    assert (await orders.collect(AGENT, "default", frozenset({3}))).bytes == 0  # within the grace period
    harness.clock.advance(25 * 3600)
    freed = (await orders.collect(AGENT, "default", frozenset({3}))).bytes
    assert freed > 0
    kept = [info.key for info in harness.repository().store.list("manifests/")]
    assert len(kept) == 2
    assert (await orders.head(AGENT, "default")) == harness.head()


async def test_a_store_that_does_not_answer_delays_the_grant_and_grants_once(harness: ControlHarness) -> None:
    assert harness.server is not None
    await harness.server.stop()
    await harness.lead(answer_seconds=0.05)
    harness.pod("a")
    harness.store.hold()
    pod = await harness.hello("a", "restore")
    assert (await pod.expect(Wait)).reason == "StoreUnavailable"
    harness.store.release()
    assert (await pod.expect(Grant)).welcome.epoch == 1
    assert harness.chain() == [("grant", 1, 1)]


async def test_the_predecessors_attempt_fails_even_if_the_successor_disconnected_before_its_grant(
    harness: ControlHarness,
) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Interval", 600)
    await pod.expect(Checkpoint)
    await harness.leave(pod)
    harness.end("a")
    harness.clock.advance(20)
    harness.pod("b")
    harness.store.hold()
    impatient = await harness.hello("b", "restore")
    await asyncio.sleep(0.02)
    await impatient.close()  # before its grant was written
    harness.store.release()
    await until(lambda: len(harness.chain()) == 2)
    assert (await harness.grant("b")).epoch == 2
    assert [each.reason for each in harness.recorder.calls_of("failed")] == ["SourcePodReplaced"]
    sidecar, _ = await harness.sidecar("b")
    await harness.server.orders.checkpoint(AGENT, attempt(2), "Interval", 60)
    await sidecar.expect(Checkpoint)


async def test_a_commit_retries_when_another_operator_took_its_sequence(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    chain = Chain(harness.repository().store, *AGENT)
    taken: list[int] = []

    async def commit_elsewhere() -> None:
        if not taken:  # an operator that had been suspended commits for the same pod
            head = harness.head()
            assert head is not None
            offer = harness.offer(attempt(7), 1)
            manifest = ManifestName(offer.manifest.name, offer.manifest.size)
            record = commit.checkpoint(
                head, attempt=attempt(7), manifest=manifest, time=head.record.time, trigger="Agent"
            )
            taken.append(chain.append(record).record.sequence)

    harness.recorder.before_naming = commit_elsewhere
    committed = await pod.request(harness.offer(attempt(1), 1), Committed)
    assert (taken, committed.checkpoint.sequence) == ([2], 3)


async def test_a_grant_by_another_operator_is_noticed(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    head = harness.head()
    assert head is not None
    Chain(harness.repository().store, *AGENT).append(
        commit.grant(head, *AGENT, pod_uid="b", node="n2", time=head.record.time)
    )
    assert (await pod.request(harness.offer(attempt(1), 1), Refused)).reason == "Fenced"


async def test_a_missing_record_is_detected_by_the_pin_in_memory_or_status(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(harness.offer(attempt(1), 1), Committed)
    pin = harness.pod_resolver.pins[AGENT]
    store = harness.repository().store
    store.delete("commits/00000000000000000002")
    assert (await pod.request(harness.offer(attempt(2), 1), Refused)).reason == "RollbackDetected"
    assert harness.server is not None
    await harness.server.stop()
    await harness.lead()  # without memory
    assert harness.pod_resolver.pins[AGENT] == pin
    restarted = await harness.hello("a", "restore")
    assert (await restarted.expect(Refused)).reason == "RollbackDetected"
    await harness.leave(restarted)  # without a report: the operator records the outcome
    assert [each.outcome for each in harness.recorder.calls_of("restore_ended")] == ["RollbackDetected"]
    del harness.pod_resolver.pins[AGENT]  # the ProtectedAgent was deleted: the store's content is accepted
    await harness.grant("a")


async def test_a_rollback_to_a_collected_checkpoint_is_refused(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    await pod.request(offer, Committed)
    await pod.request(harness.offer(attempt(2), 1), Committed)
    harness.repository().store.delete(f"manifests/{offer.manifest.name}")
    assert harness.server is not None
    with pytest.raises(ObjectMissing, match="choose another"):
        await harness.server.orders.rollback(AGENT, attempt(9), 2, "default")
    with pytest.raises(Unavailable):
        await harness.server.orders.rollback(AgentRef("demo", "unknown-agent"), attempt(9), None, "default")
    assert len(harness.chain()) == 3


async def test_a_completion_survives_a_lost_answer_of_the_store(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.store.lose_answer_of = "commits/"
    await pod.request(Released(1, completed=True), Ack)
    assert [kind for kind, _, _ in harness.chain()] == ["grant", "completed"]


async def test_a_release_of_another_epoch_is_refused(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert (await pod.request(Released(2), Stop)).reason == "Fenced"
    assert not harness.recorder.calls_of("released")


async def test_a_release_fails_the_attempt_in_flight(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    await harness.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await pod.expect(Checkpoint)
    await pod.request(Released(1), Ack)
    assert [each.reason for each in harness.recorder.calls_of("failed")] == ["SourcePodReplaced"]
