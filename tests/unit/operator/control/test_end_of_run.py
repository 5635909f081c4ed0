"""A run that ends when its pod exits with 0: the final checkpoint first, then the end, then a fresh start."""

import pytest
from savepoint.contract.control_protocol import Ack, Checkpoint, Committed, Released, RequestCheckpoint, Wait
from savepoint.errors import StoreUnavailable, Unavailable
from savepoint_operator.model.views import NodeState, PodState, PredecessorState

from tests.fakes.control_harness import AGENT, ControlHarness, attempt, until
from tests.unit.operator.control.test_restart import leave_behind

STORE = "default"


def exit_with_0(harness: ControlHarness, uid: str) -> None:
    harness.pod_resolver.predecessors[uid] = PredecessorState(PodState.TERMINAL, NodeState.READY, run_ended=True)


def kinds(harness: ControlHarness) -> list[str]:
    return [kind for kind, _, _ in harness.chain()]


async def test_the_end_of_the_run_is_recorded_once(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(harness.offer(attempt(1), 1), Committed)
    await pod.request(Released(1), Ack)
    await harness.leave(pod)
    assert harness.server is not None
    first = await harness.server.orders.end_run(AGENT, "a", STORE)
    again = await harness.server.orders.end_run(AGENT, "a", STORE)
    assert first == again == harness.head()
    assert kinds(harness) == ["grant", "checkpoint", "completed"]
    assert [each.record.kind for each in harness.recorder.calls_of("committed")] == ["checkpoint", "completed"]
    welcome = await harness.grant("b")
    assert (welcome.epoch, welcome.run, welcome.parent) == (2, 2, None)


async def test_the_run_does_not_end_while_its_sidecar_is_connected(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    assert harness.server is not None
    with pytest.raises(Unavailable, match="is still connected"):
        await harness.server.orders.end_run(AGENT, "a", STORE)
    await pod.request(harness.offer(attempt(1), 1), Committed)
    await harness.leave(pod)
    await harness.server.orders.end_run(AGENT, "a", STORE)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]


async def test_the_run_does_not_end_while_its_last_offer_waits_for_the_store(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    offer = harness.offer(attempt(1), 1)
    assert harness.server is not None
    harness.stores.error = StoreUnavailable("the store does not answer")
    await pod.send(offer)
    await until(lambda: harness.recorder.calls_of("delayed"))
    with pytest.raises(Unavailable):
        await harness.server.orders.end_run(AGENT, "a", STORE)
    harness.stores.error = None
    harness.clock.advance(1)
    await pod.expect(Committed)
    await harness.leave(pod)
    await harness.server.orders.end_run(AGENT, "a", STORE)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]


async def test_a_pending_checkpoint_is_committed_before_the_run_ends(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    await harness.leave(pod)
    leave_behind(harness, welcome, 1)
    assert harness.server is not None
    await harness.server.orders.end_run(AGENT, "a", STORE)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]


async def test_a_pod_that_does_not_hold_the_epoch_cannot_end_the_run(harness: ControlHarness) -> None:
    assert harness.server is not None
    assert await harness.server.orders.end_run(AGENT, "a", STORE) is None
    await harness.grant("a")
    await harness.server.orders.end_run(AGENT, "another", STORE)
    assert kinds(harness) == ["grant"]


async def test_the_end_of_a_run_does_not_override_a_rollback(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    await pod.request(harness.offer(attempt(1), 1), Committed)
    await harness.leave(pod)
    assert harness.server is not None
    await harness.server.orders.rollback(AGENT, attempt(9), 2, STORE)
    await harness.server.orders.end_run(AGENT, "a", STORE)
    exit_with_0(harness, "a")
    harness.clock.advance(20)
    assert (await harness.grant("b")).parent is not None
    assert kinds(harness) == ["grant", "checkpoint", "rollback", "grant"]


async def test_a_waiting_successor_starts_fresh_after_the_run_has_ended(harness: ControlHarness) -> None:
    await harness.grant("a")
    pod, _ = await harness.sidecar("a")
    harness.pod("b")
    successor = await harness.hello("b", "restore")
    await successor.expect(Wait)
    order = await pod.request(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
    exit_with_0(harness, "a")
    await pod.request(harness.offer(order.attempt, 1, trigger="Shutdown"), Committed)
    await pod.send(Released(1))
    welcome = await successor.granted()
    assert (welcome.epoch, welcome.run, welcome.parent) == (2, 2, None)
    assert kinds(harness) == ["grant", "checkpoint", "completed", "grant"]
    assert [each.record.kind for each in harness.recorder.calls_of("committed")] == ["checkpoint", "completed"]


async def test_a_pending_checkpoint_is_adopted_before_the_run_ends_and_restarts_fresh(
    harness: ControlHarness,
) -> None:
    await harness.grant("a")
    pod, welcome = await harness.sidecar("a")
    await harness.leave(pod)
    leave_behind(harness, welcome, 1)
    exit_with_0(harness, "a")
    harness.clock.advance(20)
    assert (await harness.grant("b")).parent is None
    assert kinds(harness) == ["grant", "checkpoint", "completed", "grant"]
