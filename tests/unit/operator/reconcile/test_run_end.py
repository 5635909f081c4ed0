"""A run that ends when its pod exits with 0: recorded once, and only if the pod holds the newest epoch."""

from typing import Any

import pytest
from savepoint_operator.cluster.kinds import PODS
from savepoint_operator.model.views import Incarnation, NodeState, PodState, PredecessorState

from tests.fakes.reconcile_harness import CODER, NAMESPACE, STORE, ReconcileHarness

DISRUPTED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}


async def working_agent(harness: ReconcileHarness, policy: str = "Never", name: str = "coder-41") -> Incarnation:
    """Start a pod and take a checkpoint."""
    incarnation = await harness.start(harness.pod(restart_policy=policy))
    harness.request(name)
    await harness.settle()
    await harness.commit(incarnation)
    return incarnation


async def end_pod(harness: ReconcileHarness, incarnation: Incarnation, phase: str = "Succeeded", **status: Any) -> None:
    """End the pod as its kubelet reports it."""
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, status={"phase": phase, **status})
    await harness.settle()


def kinds(harness: ReconcileHarness) -> list[str]:
    """Return the kinds of all records of the chain, oldest first."""
    head = harness.head()
    assert head is not None
    return [str(each.record.kind) for each in harness.chain().back(head, 100)][::-1]


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
async def test_an_exit_with_0_completes_the_run(harness: ReconcileHarness, policy: str) -> None:
    incarnation = await working_agent(harness, policy)
    await harness.disconnect(incarnation, released=True)
    await end_pod(harness, incarnation)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]
    status = harness.agent()
    assert (status["reason"], status["conditions"][0]["status"]) == ("Completed", "True")
    assert status["head"]["sequence"] == 3
    await harness.advance(400, step=20)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]
    await harness.start(harness.pod(restart_policy=policy))
    assert harness.restores()[-1]["reason"] == "Fresh"
    assert harness.agent()["reason"] != "Completed"


async def test_the_runs_end_waits_for_the_sidecars_connection_to_close(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness)
    await end_pod(harness, incarnation)  # the kubelet was faster
    assert kinds(harness) == ["grant", "checkpoint"]
    await harness.disconnect(incarnation, released=True)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]


async def test_the_runs_end_is_retried_while_the_store_is_unreachable(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness)
    await harness.disconnect(incarnation)
    harness.orders.store_unavailable = True
    await end_pod(harness, incarnation)
    assert harness.agent()["reason"] == "Protected"
    harness.orders.store_unavailable = False
    await harness.advance(3)
    assert harness.agent()["reason"] == "Completed"


@pytest.mark.parametrize(
    ("policy", "phase", "status"),
    [("Never", "Failed", {}), ("Always", "Succeeded", {}), ("Never", "Succeeded", DISRUPTED)],
)
async def test_no_other_exit_ends_the_run(
    harness: ReconcileHarness, policy: str, phase: str, status: dict[str, Any]
) -> None:
    incarnation = await working_agent(harness, policy)
    await harness.disconnect(incarnation, released=True)
    await end_pod(harness, incarnation, phase, **status)
    await harness.advance(120, step=10)
    assert kinds(harness) == ["grant", "checkpoint"]
    await harness.start(harness.pod(restart_policy=policy))
    assert harness.restores()[-1]["reason"] == "Restored"


async def test_a_deleted_pod_that_exits_with_0_does_not_end_the_run(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness)
    deletion = {"deletionTimestamp": "2026-11-24T12:00:30Z", "deletionGracePeriodSeconds": 30}
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, metadata=deletion)
    await harness.disconnect(incarnation, released=True)
    finished = {"terminated": {"finishedAt": "2026-11-24T12:00:04Z"}}
    late: dict[str, Any] = {"containerStatuses": [{"name": "agent", "state": finished}]}
    await end_pod(harness, incarnation, **late)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.settle()
    assert kinds(harness) == ["grant", "checkpoint"]


async def test_a_pod_that_is_deleted_after_its_exit_has_ended_the_run(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness)
    pod_resolver = harness.leader.pod_resolver
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, status={"phase": "Succeeded"})
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)  # before it is reconciled
    found = await pod_resolver.predecessor_state(CODER, incarnation.pod.uid, "n1")
    assert found == PredecessorState(PodState.GONE, NodeState.READY, run_ended=True)
    await harness.disconnect(incarnation, released=True)
    assert kinds(harness) == ["grant", "checkpoint", "completed"]


async def test_the_pod_resolver_reports_the_end_to_a_successor(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness)
    pod_resolver = harness.leader.pod_resolver
    assert not (await pod_resolver.predecessor_state(CODER, incarnation.pod.uid, "n1")).run_ended
    await end_pod(harness, incarnation)
    found = await pod_resolver.predecessor_state(CODER, incarnation.pod.uid, "n1")
    assert found == PredecessorState(PodState.TERMINAL, NodeState.READY, run_ended=True)


async def test_a_new_leader_finds_the_pod_that_has_exited(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness)
    await harness.disconnect(incarnation)
    harness.cluster.watcher = lambda *_: None  # without a leader
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, status={"phase": "Succeeded"})
    await harness.new_leader()
    assert kinds(harness) == ["grant", "checkpoint", "completed"]
    assert harness.agent()["reason"] == "Completed"


async def test_pods_of_earlier_runs_end_nothing(harness: ReconcileHarness) -> None:
    first = await working_agent(harness)
    await harness.disconnect(first, released=True)
    await end_pod(harness, first)
    second = await working_agent(harness, name="coder-42")
    await harness.new_leader()  # sees both pods, of which one has exited
    await harness.connect(second)
    await harness.advance(30, step=10)
    assert kinds(harness) == ["grant", "checkpoint", "completed", "grant", "checkpoint"]
    assert harness.leader.agent_records[CODER].ended_pods == set()


async def test_a_rolled_back_run_is_not_completed(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness)
    await harness.disconnect(incarnation, released=True)
    await harness.orders.rollback(CODER, "ab" * 16, 2, STORE)
    await end_pod(harness, incarnation)
    await harness.advance(10)
    assert kinds(harness) == ["grant", "checkpoint", "rollback"]


async def test_the_next_leader_knows_which_pod_released_its_epoch(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness, "Always")
    assert harness.agent()["podRef"]["released"] is False
    await harness.disconnect(incarnation, released=True)
    assert harness.agent()["podRef"] == {"name": incarnation.pod.name, "uid": incarnation.pod.uid, "released": True}
    pod_resolver = (await harness.new_leader()).pod_resolver
    assert await pod_resolver.released(CODER, incarnation.pod.uid)
    assert not await pod_resolver.released(CODER, "another pod")
    await harness.connect(incarnation)  # its sidecar was restarted
    assert not await pod_resolver.released(CODER, incarnation.pod.uid)


async def test_a_pod_that_is_being_deleted_is_terminating(harness: ReconcileHarness) -> None:
    incarnation = await working_agent(harness)
    pod_resolver = harness.leader.pod_resolver
    assert not await pod_resolver.terminating(incarnation.pod)
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, metadata={"deletionTimestamp": "2026-11-24T00:00:30Z"})
    await harness.settle()
    assert await pod_resolver.terminating(incarnation.pod)
