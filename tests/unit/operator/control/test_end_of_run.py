"""A run that ends by its pod's exit with 0: the last checkpoint first, then the end, then the next one starts fresh."""

import pytest
from savepoint.contract.control_protocol import Ack, Checkpoint, Committed, Released, RequestCheckpoint, Wait
from savepoint.errors import StoreUnavailable, Unavailable
from savepoint_operator.model.views import NodeStanding, PodStanding, Standing

from tests.fakes.control_harness import AGENT, ControlHarness, attempt, until
from tests.unit.operator.control.test_restart import leave_behind

STORE = "default"


def exits(cell: ControlHarness, uid: str) -> None:
    cell.directory.standings[uid] = Standing(PodStanding.TERMINAL, NodeStanding.READY, run_ended=True)


def kinds(cell: ControlHarness) -> list[str]:
    return [kind for kind, _, _ in cell.chain()]


async def test_it_is_recorded_once(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    await pod.ask(cell.offer(attempt(1), 1), Committed)
    await pod.ask(Released(1), Ack)
    await cell.leave(pod)
    assert cell.server is not None
    first = await cell.server.orders.end_run(AGENT, "a", STORE)
    again = await cell.server.orders.end_run(AGENT, "a", STORE)
    assert first == again == cell.head()
    assert kinds(cell) == ["grant", "checkpoint", "completed"]
    assert [each.record.kind for each in cell.recorder.of("committed")] == ["checkpoint", "completed"]
    welcome = await cell.grant("b")
    assert (welcome.epoch, welcome.run, welcome.parent) == (2, 2, None)


async def test_not_while_its_sidecar_is_connected(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    assert cell.server is not None
    with pytest.raises(Unavailable, match="last words"):
        await cell.server.orders.end_run(AGENT, "a", STORE)
    await pod.ask(cell.offer(attempt(1), 1), Committed)
    await cell.leave(pod)
    await cell.server.orders.end_run(AGENT, "a", STORE)
    assert kinds(cell) == ["grant", "checkpoint", "completed"]


async def test_not_while_its_last_offer_waits_for_the_store(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    offer = cell.offer(attempt(1), 1)
    assert cell.server is not None
    cell.stores.error = StoreUnavailable("it is away")
    await pod.send(offer)
    await until(lambda: cell.recorder.of("delayed"))
    with pytest.raises(Unavailable):
        await cell.server.orders.end_run(AGENT, "a", STORE)
    cell.stores.error = None
    cell.clock.advance(1)
    await pod.expect(Committed)
    await cell.leave(pod)
    await cell.server.orders.end_run(AGENT, "a", STORE)
    assert kinds(cell) == ["grant", "checkpoint", "completed"]


async def test_what_was_left_for_an_operator_is_committed_first(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    await cell.leave(pod)
    leave_behind(cell, welcome, 1)
    assert cell.server is not None
    await cell.server.orders.end_run(AGENT, "a", STORE)
    assert kinds(cell) == ["grant", "checkpoint", "completed"]


async def test_a_pod_that_does_not_hold_the_epoch_ends_nothing(cell: ControlHarness) -> None:
    assert cell.server is not None
    assert await cell.server.orders.end_run(AGENT, "a", STORE) is None
    await cell.grant("a")
    await cell.server.orders.end_run(AGENT, "another", STORE)
    assert kinds(cell) == ["grant"]


async def test_a_rollback_is_not_overruled(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    await pod.ask(cell.offer(attempt(1), 1), Committed)
    await cell.leave(pod)
    assert cell.server is not None
    await cell.server.orders.rollback(AGENT, attempt(9), 2, STORE)
    await cell.server.orders.end_run(AGENT, "a", STORE)
    exits(cell, "a")
    cell.clock.advance(20)
    assert (await cell.grant("b")).parent is not None
    assert kinds(cell) == ["grant", "checkpoint", "rollback", "grant"]


async def test_a_successor_that_is_quick_starts_fresh(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, _ = await cell.sidecar("a")
    cell.pod("b")
    successor = await cell.hello("b", "restore")
    await successor.expect(Wait)
    order = await pod.ask(RequestCheckpoint("r1", "Shutdown"), Checkpoint)
    exits(cell, "a")
    await pod.ask(cell.offer(order.attempt, 1, trigger="Shutdown"), Committed)
    await pod.send(Released(1))
    welcome = await successor.granted()
    assert (welcome.epoch, welcome.run, welcome.parent) == (2, 2, None)
    assert kinds(cell) == ["grant", "checkpoint", "completed", "grant"]
    assert [each.record.kind for each in cell.recorder.of("committed")] == ["checkpoint", "completed"]


async def test_a_successor_adopts_then_completes_then_starts_fresh(cell: ControlHarness) -> None:
    await cell.grant("a")
    pod, welcome = await cell.sidecar("a")
    await cell.leave(pod)
    leave_behind(cell, welcome, 1)
    exits(cell, "a")
    cell.clock.advance(20)
    assert (await cell.grant("b")).parent is None
    assert kinds(cell) == ["grant", "checkpoint", "completed", "grant"]
