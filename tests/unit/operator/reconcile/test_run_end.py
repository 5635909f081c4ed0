"""A run that its pod ends by exiting with 0: recorded once, and only when the pod has the last word."""

from typing import Any

import pytest
from savepoint_operator.cluster.kinds import PODS
from savepoint_operator.model.views import Incarnation, NodeStanding, PodStanding, Standing

from tests.fakes.reconcile_harness import CODER, NAMESPACE, STORE, ReconcileHarness

DISRUPTED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}


async def at_work(bench: ReconcileHarness, policy: str = "Never", name: str = "coder-41") -> Incarnation:
    """A pod of a Job with a checkpoint."""
    who = await bench.start(bench.pod(restart_policy=policy))
    bench.ask(name)
    await bench.settle()
    await bench.commit(who)
    return who


async def exits(bench: ReconcileHarness, who: Incarnation, phase: str = "Succeeded", **status: Any) -> None:
    """As its kubelet reports it."""
    bench.cluster.put(PODS, who.pod.name, NAMESPACE, status={"phase": phase, **status})
    await bench.settle()


def kinds(bench: ReconcileHarness) -> list[str]:
    head = bench.head()
    assert head is not None
    return [each.record.kind for each in bench.chain().back(head, 100)][::-1]


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
async def test_an_exit_with_0_completes_the_run(bench: ReconcileHarness, policy: str) -> None:
    who = await at_work(bench, policy)
    await bench.disconnect(who, released=True)
    await exits(bench, who)
    assert kinds(bench) == ["grant", "checkpoint", "completed"]
    status = bench.agent()
    assert (status["reason"], status["conditions"][0]["status"]) == ("Completed", "True")
    assert status["head"]["sequence"] == 3
    await bench.pass_time(400, step=20)
    assert kinds(bench) == ["grant", "checkpoint", "completed"]
    await bench.start(bench.pod(restart_policy=policy))
    assert bench.restores()[-1]["reason"] == "Fresh"
    assert bench.agent()["reason"] != "Completed"


async def test_it_waits_for_the_last_words_of_the_sidecar(bench: ReconcileHarness) -> None:
    who = await at_work(bench)
    await exits(bench, who)  # the kubelet was faster
    assert kinds(bench) == ["grant", "checkpoint"]
    await bench.disconnect(who, released=True)
    assert kinds(bench) == ["grant", "checkpoint", "completed"]


async def test_a_store_that_is_away_is_asked_again(bench: ReconcileHarness) -> None:
    who = await at_work(bench)
    await bench.disconnect(who)
    bench.orders.store_is_away = True
    await exits(bench, who)
    assert bench.agent()["reason"] == "Protected"
    bench.orders.store_is_away = False
    await bench.pass_time(3)
    assert bench.agent()["reason"] == "Completed"


@pytest.mark.parametrize(
    ("policy", "phase", "status"),
    [("Never", "Failed", {}), ("Always", "Succeeded", {}), ("Never", "Succeeded", DISRUPTED)],
)
async def test_any_other_end_is_none_of_the_run(
    bench: ReconcileHarness, policy: str, phase: str, status: dict[str, Any]
) -> None:
    who = await at_work(bench, policy)
    await bench.disconnect(who, released=True)
    await exits(bench, who, phase, **status)
    await bench.pass_time(120, step=10)
    assert kinds(bench) == ["grant", "checkpoint"]
    await bench.start(bench.pod(restart_policy=policy))
    assert bench.restores()[-1]["reason"] == "Restored"


async def test_a_deleted_pod_that_exits_with_0_goes_on_elsewhere(bench: ReconcileHarness) -> None:
    who = await at_work(bench)
    asked = {"deletionTimestamp": "2026-11-24T12:00:30Z", "deletionGracePeriodSeconds": 30}
    bench.cluster.put(PODS, who.pod.name, NAMESPACE, metadata=asked)
    await bench.disconnect(who, released=True)
    late = {"containerStatuses": [{"name": "agent", "state": {"terminated": {"finishedAt": "2026-11-24T12:00:04Z"}}}]}
    await exits(bench, who, **late)
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    await bench.settle()
    assert kinds(bench) == ["grant", "checkpoint"]


async def test_a_job_that_is_deleted_at_once_has_ended_all_the_same(bench: ReconcileHarness) -> None:
    who = await at_work(bench)
    directory = bench.now_leading.directory
    bench.cluster.put(PODS, who.pod.name, NAMESPACE, status={"phase": "Succeeded"})
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)  # before anybody has looked
    found = await directory.standing(CODER, who.pod.uid, "n1")
    assert found == Standing(PodStanding.GONE, NodeStanding.READY, run_ended=True)
    await bench.disconnect(who, released=True)
    assert kinds(bench) == ["grant", "checkpoint", "completed"]


async def test_the_directory_says_so_to_a_successor(bench: ReconcileHarness) -> None:
    who = await at_work(bench)
    directory = bench.now_leading.directory
    assert not (await directory.standing(CODER, who.pod.uid, "n1")).run_ended
    await exits(bench, who)
    found = await directory.standing(CODER, who.pod.uid, "n1")
    assert found == Standing(PodStanding.TERMINAL, NodeStanding.READY, run_ended=True)


async def test_a_new_leader_finds_the_pod_that_has_exited(bench: ReconcileHarness) -> None:
    who = await at_work(bench)
    await bench.disconnect(who)
    bench.cluster.watcher = lambda *_: None  # nobody leads
    bench.cluster.put(PODS, who.pod.name, NAMESPACE, status={"phase": "Succeeded"})
    await bench.lead()
    assert kinds(bench) == ["grant", "checkpoint", "completed"]
    assert bench.agent()["reason"] == "Completed"


async def test_pods_of_earlier_runs_end_nothing(bench: ReconcileHarness) -> None:
    first = await at_work(bench)
    await bench.disconnect(first, released=True)
    await exits(bench, first)
    second = await at_work(bench, name="coder-42")
    await bench.lead()  # sees both pods, of which one has exited
    await bench.connect(second)
    await bench.pass_time(30, step=10)
    assert kinds(bench) == ["grant", "checkpoint", "completed", "grant", "checkpoint"]
    assert bench.now_leading.agent_records[CODER].ended_pods == set()


async def test_what_was_rolled_back_is_not_completed(bench: ReconcileHarness) -> None:
    who = await at_work(bench)
    await bench.disconnect(who, released=True)
    await bench.orders.rollback(CODER, "ab" * 16, 2, STORE)
    await exits(bench, who)
    await bench.pass_time(10)
    assert kinds(bench) == ["grant", "checkpoint", "rollback"]


async def test_the_next_leader_knows_which_pod_has_released(bench: ReconcileHarness) -> None:
    who = await at_work(bench, "Always")
    assert bench.agent()["podRef"]["released"] is False
    await bench.disconnect(who, released=True)
    assert bench.agent()["podRef"] == {"name": who.pod.name, "uid": who.pod.uid, "released": True}
    directory = (await bench.lead()).directory
    assert await directory.released(CODER, who.pod.uid)
    assert not await directory.released(CODER, "another pod")
    await bench.connect(who)  # its sidecar was started again
    assert not await directory.released(CODER, who.pod.uid)


async def test_a_pod_that_was_told_to_end_is_going(bench: ReconcileHarness) -> None:
    who = await at_work(bench)
    directory = bench.now_leading.directory
    assert not await directory.going(who.pod)
    bench.cluster.put(PODS, who.pod.name, NAMESPACE, metadata={"deletionTimestamp": "2026-11-24T00:00:30Z"})
    await bench.settle()
    assert await directory.going(who.pod)
