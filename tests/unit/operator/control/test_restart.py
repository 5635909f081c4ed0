"""What a new operator process knows: the store, the cluster, and nothing else. I3 and I4 hold across it."""

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
from savepoint_operator.model.views import AgentRef, NodeStanding, PodStanding

from tests.fakes.control_harness import AGENT, ControlHarness, attempt, until


def leave_behind(
    cell: ControlHarness, welcome: Welcome, number: int, *, completed: bool = False, damage: bool = False
) -> str:
    """Put a finished checkpoint where a sidecar puts it when no operator answers."""
    store = cell.repository().store
    offer = cell.offer(attempt(number), welcome.epoch)
    content = store.get(f"manifests/{offer.manifest.name}", max_bytes=MAX_MANIFEST_BYTES)
    store.delete(f"manifests/{offer.manifest.name}")
    if damage:
        content = content[:-1] + bytes([content[-1] ^ 1])
    pending = Pending(attempt(number), welcome.epoch, "a", "Shutdown", completed, content)
    store.put_new(welcome.pending_key, pending_bytes(pending))
    return offer.manifest.name


async def test_a_deferred_commit_is_adopted_before_the_next_grant(cell: ControlHarness) -> None:
    await cell.grant("a")
    _, welcome = await cell.sidecar("a")
    server = cell.server
    assert server is not None
    await server.stop()
    name = leave_behind(cell, welcome, 1)
    cell.end("a")
    await cell.lead()  # knows no pending key
    granted = await cell.grant("b")  # at once: nothing comes after what is left behind
    assert granted.parent is not None
    assert (granted.parent.manifest.name, granted.parent.name) == (name, "coder-1")
    assert cell.chain() == [("grant", 1, 1), ("checkpoint", 2, 1), ("grant", 3, 2)]
    assert [each.record.trigger for each in cell.recorder.of("committed")] == ["Shutdown"]
    (contents,) = cell.recorder.of("told")
    manifest = cell.repository().read_manifest(name, granted.parent.manifest.size)
    assert (contents.logical_bytes, contents.cut) == (manifest.size.logical, manifest.created)
    assert [each.name for each in contents.components] == [each.name for each in manifest.components]
    assert cell.repository().store.head(welcome.pending_key) is None
    assert ("list", "pending/") not in cell.store.calls


async def test_what_was_left_in_the_same_epoch_is_adopted_when_the_sidecar_comes_back(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    await pod.close()
    leave_behind(cell, welcome, 1)
    pod, again = await cell.sidecar("a", epoch=1)
    assert again.parent is not None
    assert again.parent.sequence == 2
    committed = await pod.ask(cell.offer(attempt(2), 1), Committed)
    assert committed.checkpoint.sequence == 3


async def test_an_ordered_attempt_that_was_left_behind_is_no_failure(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    assert cell.server is not None
    await cell.server.orders.checkpoint(AGENT, attempt(1), "Drain", 60)
    await pod.expect(Checkpoint)
    await cell.leave(pod)
    leave_behind(cell, welcome, 1)
    cell.end("a")
    cell.clock.advance(20)
    assert (await cell.grant("b")).parent is not None
    assert not cell.recorder.of("failed")


async def test_what_was_left_behind_is_no_release_while_the_pod_runs(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    await cell.leave(pod)
    leave_behind(cell, welcome, 1)
    cell.pod("b")
    waiting = await cell.hello("b", "restore")
    await waiting.expect(Wait)
    cell.end("a", PodStanding.TERMINAL)
    assert (await waiting.granted()).parent is not None


async def test_a_release_that_an_earlier_leader_heard_lets_the_successor_in_at_once(cell: ControlHarness) -> None:
    await cell.grant("a")
    cell.end("a")
    await cell.lead()
    cell.pod("b")
    waiting = await cell.hello("b", "restore")
    await waiting.expect(Wait)
    cell.directory.released_before.add("a")
    assert (await waiting.granted()).epoch == 2


async def test_an_attempt_that_its_sidecar_gave_up_but_that_was_committed_has_not_failed(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    await pod.send(cell.offer(attempt(1), 1))
    await until(lambda: cell.head().record.kind == "checkpoint")  # type: ignore[union-attr]
    await cell.lead()
    pod, _ = await cell.sidecar("a", epoch=1)
    await pod.ask(Result(attempt(1), "Failed", "Unavailable", "the operator is away"), Ack)
    await pod.ask(Result(attempt(2), "Failed", "Unavailable", "another one"), Ack)
    assert [each.attempt for each in cell.recorder.of("failed")] == [attempt(2)]


async def test_a_completion_that_was_left_behind_lets_the_next_start_fresh(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    await cell.leave(pod)
    leave_behind(cell, welcome, 1, completed=True)
    cell.end("a")
    cell.clock.advance(20)
    assert (await cell.grant("b")).parent is None
    assert [kind for kind, _, _ in cell.chain()] == ["grant", "checkpoint", "completed", "grant"]
    assert [each.record.kind for each in cell.recorder.of("committed")] == ["checkpoint", "completed"]


async def test_what_is_damaged_is_reported_and_holds_up_nobody(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    first = await pod.ask(cell.offer(attempt(1), 1), Committed)
    await cell.leave(pod)
    leave_behind(cell, welcome, 2, damage=True)
    pod, again = await cell.sidecar("a")
    assert again.pending_key != welcome.pending_key  # that one is taken
    await cell.leave(pod)
    cell.end("a")
    cell.clock.advance(20)
    assert (await cell.grant("b")).parent == first.checkpoint
    assert {(each.attempt, each.reason) for each in cell.recorder.of("failed")} == {(attempt(2), "IntegrityError")}


async def test_what_was_left_after_a_rollback_does_not_undo_it(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    first = await pod.ask(cell.offer(attempt(1), 1), Committed)
    await pod.ask(cell.offer(attempt(2), 1), Committed)
    assert cell.server is not None
    await cell.server.orders.rollback(AGENT, attempt(9), first.checkpoint.sequence, "default")
    await cell.leave(pod)
    leave_behind(cell, welcome, 3)
    cell.end("a")
    cell.clock.advance(20)
    granted = await cell.grant("b")
    assert granted.parent is not None
    assert granted.parent.manifest == first.checkpoint.manifest


async def test_a_crash_between_commit_and_answer_is_answered_by_the_next_leader(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    offer = cell.offer(attempt(1), 1)
    cell.store.lose_answer_of = "nothing"
    await pod.send(offer)
    await until(lambda: cell.head().record.kind == "checkpoint")  # type: ignore[union-attr]
    assert cell.server is not None
    await cell.server.stop()
    await cell.lead()
    pod, welcome = await cell.sidecar("a", epoch=1, attempts=(AttemptState(attempt(1), "Committing"),))
    assert welcome.parent is not None
    committed = await pod.ask(offer, Committed)
    assert committed.checkpoint == welcome.parent
    assert cell.chain() == [("grant", 1, 1), ("checkpoint", 2, 1)]


async def test_a_new_leader_counts_every_silence_anew(cell: ControlHarness) -> None:
    await cell.grant("a")
    cell.end("a", PodStanding.GONE, NodeStanding.LOST)
    cell.clock.advance(10_000)
    await cell.lead()
    cell.pod("b")
    pod = await cell.hello("b", "restore")
    await pod.expect(Wait)
    cell.clock.advance(44)
    await asyncio.sleep(0.05)
    assert len(cell.chain()) == 1
    cell.clock.advance(1)
    await pod.granted()


async def test_two_operators_at_once_never_grant_one_epoch_twice(cell: ControlHarness) -> None:
    await cell.grant("a")
    cell.end("a")
    first = cell.server
    first_port = cell.port
    await cell.lead()
    cell.clock.advance(60)
    for uid in ("b", "c"):
        cell.pod(uid)
    pods = []
    for uid, port in (("b", first_port), ("c", cell.port)):
        pod = await cell.dial(uid, port=port)
        await pod.send(Hello("restore", 1, "0.1.0", "n1"))
        pods.append(pod)
    answers = [await pod.receive() for pod in pods]
    granted = [each for each in answers if isinstance(each, Grant)]
    assert granted
    assert [(kind, epoch) for kind, _, epoch in cell.chain()][:2] == [("grant", 1), ("grant", 2)]
    assert sum(epoch == 2 for _, _, epoch in cell.chain()) == 1
    assert first is not None
    await first.stop()


async def test_a_thawed_copy_cannot_commit_under_the_next_leader(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    offer = cell.offer(attempt(1), 1)
    await cell.leave(pod)
    cell.end("a", PodStanding.RUNNING, NodeStanding.LOST)
    assert cell.server is not None
    await cell.server.stop()
    await cell.lead()
    cell.clock.advance(60)
    assert (await cell.grant("b")).epoch == 2
    pod = await cell.hello("a", "sidecar", epoch=1, attempts=(AttemptState(offer.attempt, "Committing"),))
    assert (await pod.expect(Stop)).reason == "Fenced"
    asks = await cell.hello("a", "restore", epoch=1)
    assert (await asks.expect(Refused)).reason == "Fenced"
    assert [kind for kind, _, _ in cell.chain()] == ["grant", "grant"]


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_is_killed_sequences_and_epochs_rise_and_nothing_ready_is_lost(
    cell: ControlHarness, seed: int
) -> None:
    """Pods come, commit and go; operators are killed in between, and some answers of the store are lost."""
    cell.random.seed(seed)
    uid, number, ready = "", 0, 0
    for step in range(12):
        before = uid
        uid = f"p{step}"
        if before:
            cell.end(before)
        if cell.random.random() < 0.5:
            assert cell.server is not None
            await cell.server.stop()
            await cell.lead()
        if cell.random.random() < 0.3:
            cell.store.lose_answer_of = "commits/"
        cell.clock.advance(60)
        restored = (await cell.grant(uid)).parent
        assert (restored.sequence if restored else 0) >= ready
        pod, _ = await cell.sidecar(uid)
        for _ in range(cell.random.randrange(3)):
            number += 1
            offer = cell.offer(attempt(number), step + 1)
            if cell.random.random() < 0.3:
                cell.store.lose_answer_of = "commits/"
            ready = (await pod.ask(offer, Committed)).checkpoint.sequence
        await cell.leave(pod)
    chain = cell.chain()
    assert [sequence for _, sequence, _ in chain] == list(range(1, len(chain) + 1))
    assert [epoch for kind, _, epoch in chain if kind == "grant"] == list(range(1, 13))
    assert [epoch for _, _, epoch in chain] == sorted(epoch for _, _, epoch in chain)


async def test_a_collection_frees_what_nothing_needs_after_the_grace(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    for number in (1, 2, 3):
        await pod.ask(cell.offer(attempt(number), 1), Committed)
    assert cell.server is not None
    orders = cell.server.orders
    assert await orders.collect(AGENT, "default", frozenset({3})) == 0  # within the grace
    cell.clock.advance(25 * 3600)
    freed = await orders.collect(AGENT, "default", frozenset({3}))
    assert freed > 0
    kept = [info.key for info in cell.repository().store.list("manifests/")]
    assert len(kept) == 2
    assert (await orders.head(AGENT, "default")) == cell.head()


async def test_a_store_that_says_nothing_is_waited_for_and_grants_once(cell: ControlHarness) -> None:
    assert cell.server is not None
    await cell.server.stop()
    await cell.lead(answer_seconds=0.05)
    cell.pod("a")
    cell.store.hold()
    pod = await cell.hello("a", "restore")
    assert (await pod.expect(Wait)).reason == "StoreUnavailable"
    cell.store.release()
    assert (await pod.expect(Grant)).welcome.epoch == 1
    assert cell.chain() == [("grant", 1, 1)]


async def test_the_attempt_of_a_predecessor_ends_even_when_its_successor_was_granted_unseen(
    cell: ControlHarness,
) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    assert cell.server is not None
    await cell.server.orders.checkpoint(AGENT, attempt(1), "Interval", 600)
    await pod.expect(Checkpoint)
    await cell.leave(pod)
    cell.end("a")
    cell.clock.advance(20)
    cell.pod("b")
    cell.store.hold()
    gone = await cell.hello("b", "restore")
    await asyncio.sleep(0.02)
    await gone.close()  # before its grant was written
    cell.store.release()
    await until(lambda: len(cell.chain()) == 2)
    assert (await cell.grant("b")).epoch == 2
    assert [each.reason for each in cell.recorder.of("failed")] == ["SourcePodReplaced"]
    sidecar, _ = await cell.sidecar("b")
    await cell.server.orders.checkpoint(AGENT, attempt(2), "Interval", 60)
    await sidecar.expect(Checkpoint)


async def test_a_commit_whose_sequence_another_operator_took_looks_again(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    chain = Chain(cell.repository().store, *AGENT)
    taken: list[int] = []

    async def be_slow() -> None:
        if not taken:  # an operator that was thought dead commits for the same pod
            head = cell.head()
            assert head is not None
            offer = cell.offer(attempt(7), 1)
            manifest = ManifestName(offer.manifest.name, offer.manifest.size)
            record = commit.checkpoint(
                head, attempt=attempt(7), manifest=manifest, time=head.record.time, trigger="Agent"
            )
            taken.append(chain.append(record).record.sequence)

    cell.recorder.before_naming = be_slow
    committed = await pod.ask(cell.offer(attempt(1), 1), Committed)
    assert (taken, committed.checkpoint.sequence) == ([2], 3)


async def test_a_chain_that_grew_elsewhere_is_seen(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    head = cell.head()
    assert head is not None
    Chain(cell.repository().store, *AGENT).append(
        commit.grant(head, *AGENT, pod_uid="b", node="n2", time=head.record.time)
    )
    assert (await pod.ask(cell.offer(attempt(1), 1), Refused)).reason == "Fenced"


async def test_a_record_that_was_swapped_is_found_by_the_pin_of_status_or_of_memory(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    await pod.ask(cell.offer(attempt(1), 1), Committed)
    pin = cell.directory.pins[AGENT]
    store = cell.repository().store
    store.delete("commits/00000000000000000002")
    assert (await pod.ask(cell.offer(attempt(2), 1), Refused)).reason == "RollbackDetected"
    assert cell.server is not None
    await cell.server.stop()
    await cell.lead()  # without memory
    assert cell.directory.pins[AGENT] == pin
    asks = await cell.hello("a", "restore")
    assert (await asks.expect(Refused)).reason == "RollbackDetected"
    await cell.leave(asks)  # without a word: it is reported for
    assert [each.outcome for each in cell.recorder.of("restored")] == ["RollbackDetected"]
    del cell.directory.pins[AGENT]  # the ProtectedAgent was deleted: what the store holds is accepted
    await cell.grant("a")


async def test_a_rollback_to_what_was_collected_is_refused(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    offer = cell.offer(attempt(1), 1)
    await pod.ask(offer, Committed)
    await pod.ask(cell.offer(attempt(2), 1), Committed)
    cell.repository().store.delete(f"manifests/{offer.manifest.name}")
    assert cell.server is not None
    with pytest.raises(ObjectMissing, match="choose another"):
        await cell.server.orders.rollback(AGENT, attempt(9), 2, "default")
    with pytest.raises(Unavailable):
        await cell.server.orders.rollback(AgentRef("demo", "nobody"), attempt(9), None, "default")
    assert len(cell.chain()) == 3


async def test_a_completion_waits_for_the_store(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    cell.store.lose_answer_of = "commits/"
    await pod.ask(Released(1, completed=True), Ack)
    assert [kind for kind, _, _ in cell.chain()] == ["grant", "completed"]


async def test_a_release_of_another_epoch_releases_nothing(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    assert (await pod.ask(Released(2), Stop)).reason == "Fenced"
    assert not cell.recorder.of("released")


async def test_a_release_ends_the_attempt_in_flight(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    assert cell.server is not None
    await cell.server.orders.checkpoint(AGENT, attempt(1), "Interval", 60)
    await pod.expect(Checkpoint)
    await pod.ask(Released(1), Ack)
    assert [each.reason for each in cell.recorder.of("failed")] == ["SourcePodReplaced"]
