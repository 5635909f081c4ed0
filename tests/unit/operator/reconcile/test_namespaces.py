"""A namespace that is deleted and made again, while the bucket keeps what its agents stored."""

import logging

import pytest
from savepoint.contract.names import LABEL_AGENT
from savepoint_operator.cluster.kinds import AGENTS, CHECKPOINTS, EVENTS, PODS, RESTORES
from savepoint_operator.model.views import Incarnation

from tests.fakes.reconcile_harness import CODER, NAMESPACE, ReconcileHarness


async def used(bench: ReconcileHarness) -> Incarnation:
    """An agent with three checkpoints."""
    who = await bench.start(bench.pod())
    for number in (1, 2, 3):
        bench.ask(f"coder-{number}")
        await bench.pass_time(3)
        await bench.commit(who)
    assert set(bench.checkpoints().values()) == {"Ready"}
    return who


def empty(bench: ReconcileHarness) -> None:
    """What the namespace controller does."""
    for kind in (CHECKPOINTS, RESTORES, AGENTS, EVENTS, PODS):
        for raw in bench.cluster.every(kind):
            bench.cluster.remove(kind, raw["metadata"]["name"], NAMESPACE)


async def delete(bench: ReconcileHarness, who: Incarnation) -> None:
    """Its pod ends, then its objects go."""
    bench.cluster.terminating.add(NAMESPACE)
    await bench.disconnect(who, released=True)
    empty(bench)
    await bench.pass_time(20)
    bench.cluster.terminating.clear()


@pytest.mark.parametrize("another_leader", [False, True])
async def test_old_checkpoints_stay_in_the_store_and_numbers_go_on(
    bench: ReconcileHarness, another_leader: bool
) -> None:
    await delete(bench, await used(bench))
    if another_leader:
        await bench.lead()
    who = await bench.start(bench.pod())
    assert bench.restores()[-1]["reason"] == "Restored"
    assert bench.restores()[-1]["resolved"]["checkpointName"] == "coder-3"
    assert bench.cluster.events("Restored", "Pod") == ["Agent coder resumed at step docs 42 of 90 from coder-3, 3.1s."]
    assert bench.checkpoints() == {}
    assert bench.agent()["latest"]["checkpointName"] == "coder-3"
    assert bench.agent()["storedSize"] == 200 << 20
    await bench.pass_time(331)
    await bench.commit(who)
    assert bench.checkpoints() == {"coder-4": "Ready"}
    assert bench.checkpoint("coder-4")["parentName"] == "coder-3"
    await bench.lead()
    await bench.pass_time(400, step=20)
    assert bench.checkpoints() == {"coder-4": "Ready"}


async def test_a_leader_that_comes_between_brings_nothing_back_either(bench: ReconcileHarness) -> None:
    await delete(bench, await used(bench))
    bench.pod()
    await bench.lead()
    await bench.pass_time(5)
    assert bench.checkpoints() == {}
    assert "head" in bench.agent()


async def test_an_agent_that_does_not_return_stays_until_its_objects_are_deleted(bench: ReconcileHarness) -> None:
    """As the guide on sizing says: by label first, the ProtectedAgent last, in a namespace that stays."""
    who = await used(bench)
    await bench.disconnect(who, released=True)
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    await bench.pass_time(3 * 3600, step=300)
    assert len(bench.checkpoints()) == 3
    for kind in (CHECKPOINTS, RESTORES):
        for raw in bench.cluster.every(kind):
            assert raw["metadata"]["labels"] == {LABEL_AGENT: "coder"}
            bench.cluster.remove(kind, raw["metadata"]["name"], NAMESPACE)
            await bench.settle()
    bench.cluster.remove(AGENTS, "coder", NAMESPACE)
    await bench.pass_time(600, step=20)
    await bench.lead()
    await bench.pass_time(600, step=20)
    assert (bench.checkpoints(), bench.restores(), bench.cluster.every(AGENTS)) == ({}, [], [])


async def test_what_was_committed_before_the_first_pin_is_told(bench: ReconcileHarness) -> None:
    """The ProtectedAgent is new and has no pin, yet the record is of its own life."""
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    await bench.commit(who, tell=False)
    item = bench.cluster.object(AGENTS, "coder", NAMESPACE)
    bench.cluster.put(AGENTS, "coder", NAMESPACE, status={}, metadata=item["metadata"])
    await bench.lead()
    assert bench.checkpoints() == {"asked-1": "Ready"}


async def test_the_notes_of_the_deleted_namespace_go_with_it(bench: ReconcileHarness) -> None:
    who = await used(bench)
    bench.ask("last")
    await bench.settle()
    await bench.commit(who, tell=False)
    bench.cluster.terminating.add(NAMESPACE)
    head = bench.head()
    assert head is not None
    await bench.now_leading.recorder.committed(CODER, None, head, "default")
    await bench.disconnect(who, released=True)
    empty(bench)
    await bench.pass_time(90)
    assert bench.now_leading.agent_records.get(CODER) is None
    assert not bench.now_leading.queue.due
    bench.cluster.terminating.clear()
    await bench.start(bench.pod())
    line = bench.now_leading.agent_records.get(CODER)
    assert line is not None
    assert (line.attempts, line.requests, line.failure) == ({}, {}, None)
    assert bench.checkpoints() == {}


async def test_writes_into_a_terminating_namespace_are_one_line(
    bench: ReconcileHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """Its objects went first; its pod has long to end."""
    who = await used(bench)
    bench.cluster.terminating.add(NAMESPACE)
    for kind in (CHECKPOINTS, RESTORES, AGENTS):
        for raw in bench.cluster.every(kind):
            bench.cluster.remove(kind, raw["metadata"]["name"], NAMESPACE)
    caplog.set_level(logging.INFO, "savepoint_operator")
    calls = len(bench.cluster.calls)
    await bench.pass_time(600)
    lines = [each for each in caplog.records if "is being deleted" in each.message]
    assert len(lines) == 1
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(bench.cluster.calls) - calls < 60
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    await bench.disconnect(who, released=True)
    await bench.pass_time(120)
    assert bench.now_leading.agent_records.get(CODER) is None
