"""A namespace that is deleted and created again, while the bucket keeps its agents' checkpoints."""

import logging

import pytest
from savepoint.contract.names import LABEL_AGENT
from savepoint_operator.cluster.kinds import AGENTS, CHECKPOINTS, EVENTS, PODS, RESTORES
from savepoint_operator.model.views import Incarnation

from tests.fakes.reconcile_harness import CODER, NAMESPACE, ReconcileHarness


async def used_agent(harness: ReconcileHarness) -> Incarnation:
    """Start an agent and take three checkpoints."""
    incarnation = await harness.start(harness.pod())
    for number in (1, 2, 3):
        harness.request(f"coder-{number}")
        await harness.advance(3)
        await harness.commit(incarnation)
    assert set(harness.checkpoints().values()) == {"Ready"}
    return incarnation


def delete_objects(harness: ReconcileHarness) -> None:
    """Delete the namespace's objects as the namespace controller does."""
    for kind in (CHECKPOINTS, RESTORES, AGENTS, EVENTS, PODS):
        for raw in harness.cluster.every(kind):
            harness.cluster.remove(kind, raw["metadata"]["name"], NAMESPACE)


async def delete_namespace(harness: ReconcileHarness, incarnation: Incarnation) -> None:
    """Delete the namespace: the pod ends, then the objects are deleted."""
    harness.cluster.terminating.add(NAMESPACE)
    await harness.disconnect(incarnation, released=True)
    delete_objects(harness)
    await harness.advance(20)
    harness.cluster.terminating.clear()


@pytest.mark.parametrize("another_leader", [False, True])
async def test_old_checkpoints_stay_in_the_store_and_numbers_continue(
    harness: ReconcileHarness, another_leader: bool
) -> None:
    await delete_namespace(harness, await used_agent(harness))
    if another_leader:
        await harness.new_leader()
    incarnation = await harness.start(harness.pod())
    assert harness.restores()[-1]["reason"] == "Restored"
    assert harness.restores()[-1]["resolved"]["checkpointName"] == "coder-3"
    assert harness.cluster.events("Restored", "Pod") == [
        "Agent coder resumed at step docs 42 of 90 from coder-3, 3.1s."
    ]
    assert harness.checkpoints() == {}
    assert harness.agent()["latest"]["checkpointName"] == "coder-3"
    assert harness.agent()["storedSize"] == 200 << 20
    await harness.advance(331)
    await harness.commit(incarnation)
    assert harness.checkpoints() == {"coder-4": "Ready"}
    assert harness.checkpoint("coder-4")["parentName"] == "coder-3"
    await harness.new_leader()
    await harness.advance(400, step=20)
    assert harness.checkpoints() == {"coder-4": "Ready"}


async def test_a_new_leader_in_between_creates_no_old_objects(harness: ReconcileHarness) -> None:
    await delete_namespace(harness, await used_agent(harness))
    harness.pod()
    await harness.new_leader()
    await harness.advance(5)
    assert harness.checkpoints() == {}
    assert "head" in harness.agent()


async def test_an_agent_without_pods_exists_until_its_objects_are_deleted(harness: ReconcileHarness) -> None:
    """Delete them as the guide on sizing says: by label first and the ProtectedAgent last; the namespace stays."""
    incarnation = await used_agent(harness)
    await harness.disconnect(incarnation, released=True)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.advance(3 * 3600, step=300)
    assert len(harness.checkpoints()) == 3
    for kind in (CHECKPOINTS, RESTORES):
        for raw in harness.cluster.every(kind):
            assert raw["metadata"]["labels"] == {LABEL_AGENT: "coder"}
            harness.cluster.remove(kind, raw["metadata"]["name"], NAMESPACE)
            await harness.settle()
    harness.cluster.remove(AGENTS, "coder", NAMESPACE)
    await harness.advance(600, step=20)
    await harness.new_leader()
    await harness.advance(600, step=20)
    assert (harness.checkpoints(), harness.restores(), harness.cluster.every(AGENTS)) == ({}, [], [])


async def test_a_commit_before_the_first_pin_is_recorded(harness: ReconcileHarness) -> None:
    """The ProtectedAgent is new and has no pin, but the record is newer than it."""
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    await harness.commit(incarnation, report=False)
    item = harness.cluster.object(AGENTS, "coder", NAMESPACE)
    harness.cluster.put(AGENTS, "coder", NAMESPACE, status={}, metadata=item["metadata"])
    await harness.new_leader()
    assert harness.checkpoints() == {"manual-1": "Ready"}


async def test_the_records_of_a_deleted_namespace_are_dropped(harness: ReconcileHarness) -> None:
    incarnation = await used_agent(harness)
    harness.request("last")
    await harness.settle()
    await harness.commit(incarnation, report=False)
    harness.cluster.terminating.add(NAMESPACE)
    head = harness.head()
    assert head is not None
    await harness.leader.recorder.committed(CODER, None, head, "default")
    await harness.disconnect(incarnation, released=True)
    delete_objects(harness)
    await harness.advance(90)
    assert harness.leader.agent_records.get(CODER) is None
    assert not harness.leader.queue.due
    harness.cluster.terminating.clear()
    await harness.start(harness.pod())
    record = harness.leader.agent_records.get(CODER)
    assert record is not None
    assert (record.attempts, record.requests, record.failure) == ({}, {}, None)
    assert harness.checkpoints() == {}


async def test_failed_writes_into_a_terminating_namespace_are_logged_once(
    harness: ReconcileHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """The objects are deleted first; the pod has a long grace period."""
    incarnation = await used_agent(harness)
    harness.cluster.terminating.add(NAMESPACE)
    for kind in (CHECKPOINTS, RESTORES, AGENTS):
        for raw in harness.cluster.every(kind):
            harness.cluster.remove(kind, raw["metadata"]["name"], NAMESPACE)
    caplog.set_level(logging.INFO, "savepoint_operator")
    calls = len(harness.cluster.calls)
    await harness.advance(600)
    lines = [each for each in caplog.records if "is being deleted" in each.message]
    assert len(lines) == 1
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(harness.cluster.calls) - calls < 60
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.disconnect(incarnation, released=True)
    await harness.advance(120)
    assert harness.leader.agent_records.get(CODER) is None
