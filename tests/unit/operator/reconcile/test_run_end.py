"""A run that its pod ends by exiting with 0: recorded once, and only when the pod has the last word."""

from typing import Any

import pytest
from savepoint_operator.cluster.kinds import PODS
from savepoint_operator.model.views import Incarnation, NodeState, PodState, PredecessorState

from tests.fakes.reconcile_harness import CODER, NAMESPACE, STORE, ReconcileHarness

DISRUPTED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}


async def at_work(harness: ReconcileHarness, policy: str = "Never", name: str = "coder-41") -> Incarnation:
    """A pod of a Job with a checkpoint."""
    incarnation = await harness.start(harness.pod(restart_policy=policy))
    harness.request(name)
    await harness.settle()
    await harness.commit(incarnation)
    return incarnation


async def exits(harness: ReconcileHarness, incarnation: Incarnation, phase: str = "Succeeded", **status: Any) -> None:
    """As its kubelet reports it."""
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, status={"phase": phase, **status})
    await harness.settle()


def kinds(harness: ReconcileHarness) -> list[str]:
    head = harness.head()
    assert head is not None
    return [each.record.kind for each in harness.chain().back(head, 100)][::-1]


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
async def test_an_exit_with_0_completes_the_run(harness: ReconcileHarness, policy: str) -> None:
    incarnation = await at_work(harness, policy)
    await harness.disconnect(incarnation, released=True)
    await exits(harness, incarnation)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]
    status = harness.agent()
    assert (status["reason"], status["conditions"][0]["status"]) == ("Completed", "True")
    assert status["head"]["sequence"] == 3
    await harness.advance(400, step=20)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]
    await harness.start(harness.pod(restart_policy=policy))
    assert harness.restores()[-1]["reason"] == "Fresh"
    assert harness.agent()["reason"] != "Completed"


async def test_it_waits_for_the_last_words_of_the_sidecar(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness)
    await exits(harness, incarnation)  # the kubelet was faster
    assert kinds(harness) == ["grant", "checkpoint"]
    await harness.disconnect(incarnation, released=True)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]


async def test_a_store_that_is_away_is_asked_again(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness)
    await harness.disconnect(incarnation)
    harness.orders.store_unavailable = True
    await exits(harness, incarnation)
    assert harness.agent()["reason"] == "Protected"
    harness.orders.store_unavailable = False
    await harness.advance(3)
    assert harness.agent()["reason"] == "Completed"


@pytest.mark.parametrize(
    ("policy", "phase", "status"),
    [("Never", "Failed", {}), ("Always", "Succeeded", {}), ("Never", "Succeeded", DISRUPTED)],
)
async def test_any_other_end_is_none_of_the_run(
    harness: ReconcileHarness, policy: str, phase: str, status: dict[str, Any]
) -> None:
    incarnation = await at_work(harness, policy)
    await harness.disconnect(incarnation, released=True)
    await exits(harness, incarnation, phase, **status)
    await harness.advance(120, step=10)
    assert kinds(harness) == ["grant", "checkpoint"]
    await harness.start(harness.pod(restart_policy=policy))
    assert harness.restores()[-1]["reason"] == "Restored"


async def test_a_deleted_pod_that_exits_with_0_goes_on_elsewhere(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness)
    asked = {"deletionTimestamp": "2026-11-24T12:00:30Z", "deletionGracePeriodSeconds": 30}
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, metadata=asked)
    await harness.disconnect(incarnation, released=True)
    late = {"containerStatuses": [{"name": "agent", "state": {"terminated": {"finishedAt": "2026-11-24T12:00:04Z"}}}]}
    await exits(harness, incarnation, **late)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.settle()
    assert kinds(harness) == ["grant", "checkpoint"]


async def test_a_job_that_is_deleted_at_once_has_ended_all_the_same(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness)
    pod_resolver = harness.leader.pod_resolver
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, status={"phase": "Succeeded"})
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)  # before anybody has looked
    found = await pod_resolver.predecessor_state(CODER, incarnation.pod.uid, "n1")
    assert found == PredecessorState(PodState.GONE, NodeState.READY, run_ended=True)
    await harness.disconnect(incarnation, released=True)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]


async def test_the_directory_says_so_to_a_successor(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness)
    pod_resolver = harness.leader.pod_resolver
    assert not (await pod_resolver.predecessor_state(CODER, incarnation.pod.uid, "n1")).run_ended
    await exits(harness, incarnation)
    found = await pod_resolver.predecessor_state(CODER, incarnation.pod.uid, "n1")
    assert found == PredecessorState(PodState.TERMINAL, NodeState.READY, run_ended=True)


async def test_a_new_leader_finds_the_pod_that_has_exited(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness)
    await harness.disconnect(incarnation)
    harness.cluster.watcher = lambda *_: None  # nobody leads
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, status={"phase": "Succeeded"})
    await harness.new_leader()
    assert kinds(harness) == ["grant", "checkpoint", "completed"]
    assert harness.agent()["reason"] == "Completed"


async def test_pods_of_earlier_runs_end_nothing(harness: ReconcileHarness) -> None:
    first = await at_work(harness)
    await harness.disconnect(first, released=True)
    await exits(harness, first)
    second = await at_work(harness, name="coder-42")
    await harness.new_leader()  # sees both pods, of which one has exited
    await harness.connect(second)
    await harness.advance(30, step=10)
    assert kinds(harness) == ["grant", "checkpoint", "completed", "grant", "checkpoint"]
    assert harness.leader.agent_records[CODER].ended_pods == set()


async def test_what_was_rolled_back_is_not_completed(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness)
    await harness.disconnect(incarnation, released=True)
    await harness.orders.rollback(CODER, "ab" * 16, 2, STORE)
    await exits(harness, incarnation)
    await harness.advance(10)
    assert kinds(harness) == ["grant", "checkpoint", "rollback"]


async def test_the_next_leader_knows_which_pod_has_released(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness, "Always")
    assert harness.agent()["podRef"]["released"] is False
    await harness.disconnect(incarnation, released=True)
    assert harness.agent()["podRef"] == {"name": incarnation.pod.name, "uid": incarnation.pod.uid, "released": True}
    pod_resolver = (await harness.new_leader()).pod_resolver
    assert await pod_resolver.released(CODER, incarnation.pod.uid)
    assert not await pod_resolver.released(CODER, "another pod")
    await harness.connect(incarnation)  # its sidecar was started again
    assert not await pod_resolver.released(CODER, incarnation.pod.uid)


async def test_a_pod_that_was_told_to_end_is_going(harness: ReconcileHarness) -> None:
    incarnation = await at_work(harness)
    pod_resolver = harness.leader.pod_resolver
    assert not await pod_resolver.terminating(incarnation.pod)
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, metadata={"deletionTimestamp": "2026-11-24T00:00:30Z"})
    await harness.settle()
    assert await pod_resolver.terminating(incarnation.pod)
