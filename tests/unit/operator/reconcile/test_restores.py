"""Starts of pods, as AgentRestores and Events tell them."""

from typing import Any

import pytest
from savepoint.contract.control_protocol import Outcome, Progress, Wait
from savepoint.contract.names import LABEL_AGENT
from savepoint.repository.format.canonical import time_text
from savepoint.repository.history import lineage
from savepoint_operator.cluster.kinds import DEPLOYMENTS, EVENTS, PODS, RESTORES
from savepoint_operator.reconcile.agent.restores import KEPT, WAITS_TOLD

from tests.fakes.reconcile_harness import CODER, NAMESPACE, ReconcileHarness


async def ready(bench: ReconcileHarness, who: Any, name: str) -> None:
    bench.ask(name)
    await bench.settle()
    await bench.commit(who)


async def test_the_first_start_is_fresh(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    (status,) = bench.restores()
    assert (status["reason"], status["epoch"], status["agent"]) == ("Fresh", 1, "coder")
    assert status["targets"][0] | {"podName": who.pod.name, "state": "Fresh"} == status["targets"][0]
    assert bench.cluster.events("Fresh", "AgentRestore") == bench.cluster.events("Fresh", "Pod")
    assert bench.cluster.events("Fresh", "Pod") == ["Agent coder starts fresh in epoch 1: there is no checkpoint."]
    (item,) = bench.cluster.every(RESTORES)
    assert item["spec"] == {"mode": "Resume", "source": {"agent": "coder"}}
    assert item["metadata"]["labels"] == {LABEL_AGENT: "coder"}


async def test_a_successor_resumes_and_says_from_where(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-41")
    await bench.disconnect(who, released=True)
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    await bench.start(bench.pod())
    status = bench.restores()[-1]
    assert (status["reason"], status["epoch"]) == ("Restored", 2)
    assert status["resolved"]["checkpointName"] == "coder-41"
    assert status["summary"] == {"took": "3.1s", "discarded": "0s"}
    assert bench.cluster.events("Restored", "Pod") == ["Agent coder resumed at step docs 42 of 90 from coder-41, 3.1s."]


async def test_a_successor_says_the_step_of_what_was_committed_while_nobody_led(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask("coder-41")
    await bench.settle()
    await bench.commit(who, tell=False)  # as of a deferred commit, nobody hears an offer
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    await bench.lead()
    await bench.start(bench.pod())
    assert bench.cluster.events("Restored", "Pod") == ["Agent coder resumed at step docs 42 of 90 from coder-41, 3.1s."]


@pytest.mark.parametrize("outcome", ["Restored", "KeptLocal"])
async def test_a_checkpoint_of_another_configuration_is_told_once(bench: ReconcileHarness, outcome: str) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-41")
    await bench.disconnect(who, released=True)
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    await bench.start(bench.pod(), outcome, config_changed=True)
    status = bench.restores()[-1]
    assert (status["reason"], status["conditions"][0]["status"]) == (outcome, "True")
    assert "another configuration" in status["conditions"][0]["message"]
    await bench.pass_time(10)
    (message,) = bench.cluster.events("ConfigurationChanged")
    assert message.startswith("Checkpoint coder-41 was made under another configuration (image, command,")
    (event,) = [each for each in bench.cluster.every(EVENTS) if each["reason"] == "ConfigurationChanged"]
    assert (event["type"], event["involvedObject"]["kind"]) == ("Warning", "Pod")


async def test_a_fresh_start_has_nothing_to_compare(bench: ReconcileHarness) -> None:
    await bench.start(bench.pod(), config_changed=True)
    assert bench.cluster.events("ConfigurationChanged") == []


async def test_what_was_lost_with_a_crash_is_told(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-41")
    await bench.pass_time(120, step=10)
    await bench.disconnect(who)
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    await bench.pass_time(60, step=10)
    await bench.start(bench.pod())
    status = bench.restores()[-1]
    assert status["summary"]["discarded"] == "2m"
    assert status["discarded"]["since"] == bench.agent()["recoveryPointTime"]


async def test_a_pod_that_waits_says_for_what(bench: ReconcileHarness) -> None:
    bench.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, spec={"replicas": 1, "strategy": {"type": "RollingUpdate"}})
    owner = {"kind": "ReplicaSet", "name": "coder-7f", "uid": "rs", "controller": True}
    who = await bench.who(bench.pod(ownerReferences=[owner]))
    await bench.now_leading.recorder.waiting(who, Wait("PredecessorRunning", "Pod coder-1 holds epoch 1."))
    await bench.settle()
    (status,) = bench.restores()
    assert status["reason"] == "PredecessorRunning"
    assert status["conditions"][0]["status"] == "Unknown"
    assert bench.agent()["reason"] == "Restoring"
    for kind in ("Pod", "AgentRestore"):
        assert bench.cluster.events("PredecessorRunning", kind) == ["Pod coder-1 holds epoch 1."]
    (told,) = bench.cluster.events("PredecessorRunning", "Deployment")
    assert "Recreate" in told
    await bench.start(who.pod)
    (status,) = bench.restores()
    assert (status["reason"], status["epoch"]) == ("Fresh", 1)


async def test_a_pod_that_waits_for_something_else_by_now_says_so(bench: ReconcileHarness) -> None:
    who = await bench.who(bench.pod())
    for message in ("It is being looked at.", "Nobody answers.", "Nobody answers."):
        await bench.now_leading.recorder.waiting(who, Wait("StoreUnavailable", message))
        await bench.settle()
    for kind in ("Pod", "AgentRestore"):
        assert bench.cluster.events("StoreUnavailable", kind) == ["It is being looked at.", "Nobody answers."]


async def test_progress_and_a_failure_with_its_object(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-41")
    await bench.disconnect(who)
    recorder, successor = bench.now_leading.recorder, who
    head = bench.head()
    assert head is not None
    await recorder.granted(successor, head, "coder-41")
    await recorder.restore_progress(successor, Progress("", "Restoring", 40))
    await bench.settle()
    status = bench.restores()[-1]
    assert (status["reason"], status["targets"][0]["message"]) == ("Restoring", "40% of coder-41")
    await recorder.restored(successor, Outcome("IntegrityError", "It is damaged.", "packs/1-ab", 0, 20))
    await bench.settle()
    status = bench.restores()[-1]
    assert status["reason"] == "IntegrityError"
    assert status["conditions"][0]["status"] == "False"
    assert "packs/1-ab" in status["conditions"][0]["message"]
    (told,) = bench.cluster.events("IntegrityError", "AgentRestore")
    assert bench.cluster.events("IntegrityError", "Pod") == [told]
    assert "It is damaged." in told


async def test_a_restore_that_only_its_pod_knows_to_be_held_up_is_told_once(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-41")
    await bench.disconnect(who)
    recorder, head = bench.now_leading.recorder, bench.head()
    assert head is not None
    await recorder.granted(who, head, "coder-41")
    await bench.settle()
    assert bench.restores()[-1]["reason"] == "Fetching"
    held_up = Progress("", "Fetching", reason="StoreUnavailable", message="The store cannot be reached from here.")
    going_on = Progress("", "Restoring", 40)
    for said in (held_up, held_up, going_on, held_up):
        await recorder.restore_progress(who, said)
        await bench.settle()
        status, condition = bench.restores()[-1], bench.restores()[-1]["conditions"][0]
        if said is going_on:
            assert (condition["reason"], condition["message"]) == ("Restoring", "40% of coder-41")
            continue
        assert (condition["status"], condition["reason"]) == ("Unknown", "StoreUnavailable")
        assert condition["message"] == status["targets"][0]["message"] == held_up.message
        assert (status["reason"], status["epoch"], status["targets"][0]["state"]) == (
            "StoreUnavailable",
            1,
            status["reason"],
        )
        (protected,) = bench.agent()["conditions"][:1]
        assert held_up.message in protected["message"]
    told = [each for each in bench.cluster.every(EVENTS) if each["reason"] == "StoreUnavailable"]
    assert sorted(each["involvedObject"]["kind"] for each in told) == ["AgentRestore", "Pod"]
    assert {(each["type"], each["message"], each["count"]) for each in told} == {("Warning", held_up.message, 1)}
    await recorder.restored(who, Outcome("Restored", "", "", 410, 3100))
    await bench.settle()
    assert bench.restores()[-1]["reason"] == "Restored"


async def test_a_pod_cannot_fill_the_events_with_what_it_waits_for(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    head = bench.head()
    assert head is not None
    recorder = bench.now_leading.recorder
    await recorder.granted(who, head, None)
    for number in range(3 * WAITS_TOLD):
        await recorder.restore_progress(who, Progress("", "Fetching", reason="StoreUnavailable", message=f"{number}"))
        await bench.settle()
    assert bench.cluster.events("StoreUnavailable", "Pod") == [f"{number}" for number in range(WAITS_TOLD)]
    assert bench.restores()[-1]["conditions"][0]["message"] == f"{3 * WAITS_TOLD - 1}"


async def test_a_start_whose_pod_is_gone_ends(bench: ReconcileHarness) -> None:
    pod = bench.pod()
    who = await bench.who(pod)
    await bench.now_leading.recorder.waiting(who, Wait("PredecessorRunning", "…"))
    await bench.settle()
    bench.cluster.remove(PODS, pod.name, NAMESPACE)
    await bench.pass_time(40)
    (status,) = bench.restores()
    assert status["reason"] == "PodGone"
    assert status["completionTime"]


async def test_a_start_that_an_earlier_leader_saw_ends_too(bench: ReconcileHarness) -> None:
    pod = bench.pod()
    who = await bench.who(pod)
    await bench.now_leading.recorder.waiting(who, Wait("PredecessorRunning", "…"))
    await bench.settle()
    bench.cluster.remove(PODS, pod.name, NAMESPACE)
    await bench.lead()
    await bench.pass_time(40)
    (status,) = bench.restores()
    assert status["reason"] == "PodGone"
    assert bench.cluster.events("PodGone", "AgentRestore") == [status["conditions"][0]["message"]]


async def test_an_init_container_that_runs_again_is_the_same_start(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    head = bench.head()
    assert head is not None
    await bench.now_leading.recorder.granted(who, head, None)
    await bench.settle()
    (status,) = bench.restores()
    assert status["reason"] == "Fetching"
    assert "completionTime" not in status
    await bench.now_leading.recorder.restored(who, Outcome("KeptLocal"))
    await bench.settle()
    assert [each["reason"] for each in bench.restores()] == ["KeptLocal"]


async def test_ten_are_kept(bench: ReconcileHarness) -> None:
    for _ in range(KEPT + 3):
        pod = bench.pod()
        who = await bench.start(pod)
        await bench.disconnect(who, released=True)
        bench.cluster.remove(PODS, pod.name, NAMESPACE)
        await bench.pass_time(2)
    assert len(bench.restores()) == KEPT


async def test_a_completed_run_is_told(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-41")
    await bench.disconnect(who, released=True, completed=True)
    assert bench.agent()["reason"] == "Completed"


async def test_a_completed_run_whose_pod_stays_is_asked_for_nothing_more(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-41")
    head = bench.head()
    assert head is not None
    end = lineage.complete(bench.chain(), head, 1, who.pod.uid, time_text(bench.time.now()))
    await bench.now_leading.recorder.committed(CODER, None, end, "default")
    await bench.settle()
    ordered = len(bench.orders.ordered)
    await bench.pass_time(900, step=30)
    assert bench.agent()["reason"] == "Completed"
    assert len(bench.orders.ordered) == ordered
    await bench.start(who.pod)  # its container starts again
    assert bench.agent()["reason"] != "Completed"
    await bench.pass_time(400, step=10)
    assert len(bench.orders.ordered) == ordered + 1
