"""Starts of pods, as AgentRestores and Events show them."""

from typing import Any

import pytest
from savepoint.contract.control_protocol import Outcome, Progress, Replaced, Wait
from savepoint.contract.names import LABEL_AGENT
from savepoint.repository.format.canonical import time_text
from savepoint.repository.history import lineage
from savepoint_operator.cluster.kinds import DEPLOYMENTS, EVENTS, PODS, RESTORES
from savepoint_operator.reconcile.agent.restores import MAX_WAIT_EVENTS, RESTORES_KEPT

from tests.fakes.reconcile_harness import CODER, NAMESPACE, ReconcileHarness

RESUMED = "Agent coder resumed at step docs 42 of 90 from coder-41, 3.1s."


async def ready(harness: ReconcileHarness, incarnation: Any, name: str) -> None:
    """Take a checkpoint with this name."""
    harness.request(name)
    await harness.settle()
    await harness.commit(incarnation)


async def test_the_first_start_is_fresh(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    (status,) = harness.restores()
    assert (status["reason"], status["epoch"], status["agent"]) == ("Fresh", 1, "coder")
    assert status["targets"][0] | {"podName": incarnation.pod.name, "state": "Fresh"} == status["targets"][0]
    assert harness.cluster.events("Fresh", "AgentRestore") == harness.cluster.events("Fresh", "Pod")
    assert harness.cluster.events("Fresh", "Pod") == ["Agent coder starts fresh in epoch 1: there is no checkpoint."]
    (item,) = harness.cluster.every(RESTORES)
    assert item["spec"] == {"mode": "Resume", "source": {"agent": "coder"}}
    assert item["metadata"]["labels"] == {LABEL_AGENT: "coder"}


async def test_a_successor_reports_the_checkpoint_it_resumes_from(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-41")
    await harness.disconnect(incarnation, released=True)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.start(harness.pod())
    status = harness.restores()[-1]
    assert (status["reason"], status["epoch"]) == ("Restored", 2)
    assert status["resolved"]["checkpointName"] == "coder-41"
    assert status["summary"] == {"took": "3.1s", "discarded": "0s"}
    assert harness.cluster.events("Restored", "Pod") == [
        "Agent coder resumed at step docs 42 of 90 from coder-41, 3.1s."
    ]


async def test_a_successor_reports_the_step_of_an_unrecorded_commit(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request("coder-41")
    await harness.settle()
    await harness.commit(incarnation, report=False)  # as after a deferred commit, no leader receives an offer
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.new_leader()
    await harness.start(harness.pod())
    assert harness.cluster.events("Restored", "Pod") == [
        "Agent coder resumed at step docs 42 of 90 from coder-41, 3.1s."
    ]


@pytest.mark.parametrize("outcome", ["Restored", "KeptLocal"])
async def test_a_checkpoint_of_another_configuration_is_reported_once(harness: ReconcileHarness, outcome: str) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-41")
    await harness.disconnect(incarnation, released=True)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.start(harness.pod(), outcome, config_changed=True)
    status = harness.restores()[-1]
    assert (status["reason"], status["conditions"][0]["status"]) == (outcome, "True")
    assert "another configuration" in status["conditions"][0]["message"]
    await harness.advance(10)
    (message,) = harness.cluster.events("ConfigurationChanged")
    assert message.startswith("Checkpoint coder-41 was taken under another configuration (image, command,")
    (event,) = [each for each in harness.cluster.every(EVENTS) if each["reason"] == "ConfigurationChanged"]
    assert (event["type"], event["involvedObject"]["kind"]) == ("Warning", "Pod")


async def test_files_that_a_restore_moved_aside_are_in_status_and_events(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-41")
    await harness.disconnect(incarnation, released=True)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    moved = Replaced("/work/.savepoint/replaced-20260101-000000", 1, ("main.py",))
    await harness.start(harness.pod(), "Restored", replaced=(moved,))
    assert harness.restores()[-1]["replaced"] == [{"path": moved.path, "entries": 1, "names": ["main.py"]}]
    for kind in ("Pod", "AgentRestore"):
        (message,) = harness.cluster.events("FilesReplaced", kind)
        assert f"{moved.path}: 1 files or folders (main.py)" in message


async def test_a_fresh_start_reports_no_changed_configuration(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod(), config_changed=True)
    assert harness.cluster.events("ConfigurationChanged") == []


async def test_work_lost_in_a_crash_is_reported(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-41")
    await harness.advance(120, step=10)
    await harness.disconnect(incarnation)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.advance(60, step=10)
    await harness.start(harness.pod())
    status = harness.restores()[-1]
    assert status["summary"]["discarded"] == "2m"
    assert status["discarded"]["since"] == harness.agent()["recoveryPointTime"]


async def test_a_waiting_pod_says_what_it_waits_for(harness: ReconcileHarness) -> None:
    harness.cluster.put(DEPLOYMENTS, "coder", NAMESPACE, spec={"replicas": 1, "strategy": {"type": "RollingUpdate"}})
    owner = {"kind": "ReplicaSet", "name": "coder-7f", "uid": "rs", "controller": True}
    incarnation = await harness.resolve(harness.pod(ownerReferences=[owner]))
    await harness.leader.recorder.waiting(incarnation, Wait("PredecessorRunning", "Pod coder-1 holds epoch 1."))
    await harness.settle()
    (status,) = harness.restores()
    assert status["reason"] == "PredecessorRunning"
    assert status["conditions"][0]["status"] == "Unknown"
    assert harness.agent()["reason"] == "Restoring"
    for kind in ("Pod", "AgentRestore"):
        assert harness.cluster.events("PredecessorRunning", kind) == ["Pod coder-1 holds epoch 1."]
    (event,) = harness.cluster.events("PredecessorRunning", "Deployment")
    assert "Recreate" in event
    await harness.start(incarnation.pod)
    (status,) = harness.restores()
    assert (status["reason"], status["epoch"]) == ("Fresh", 1)


async def test_each_new_cause_of_a_wait_is_reported(harness: ReconcileHarness) -> None:
    incarnation = await harness.resolve(harness.pod())
    for message in ("The store has not been probed yet.", "The store does not answer.", "The store does not answer."):
        await harness.leader.recorder.waiting(incarnation, Wait("StoreUnavailable", message))
        await harness.settle()
    for kind in ("Pod", "AgentRestore"):
        assert harness.cluster.events("StoreUnavailable", kind) == [
            "The store has not been probed yet.",
            "The store does not answer.",
        ]


async def test_progress_and_a_failure_with_its_store_object_are_shown(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-41")
    await harness.disconnect(incarnation)
    recorder, successor = harness.leader.recorder, incarnation
    head = harness.head()
    assert head is not None
    await recorder.granted(successor, head, "coder-41")
    await recorder.restore_progressed(successor, Progress("", "Restoring", 40))
    await harness.settle()
    status = harness.restores()[-1]
    assert (status["reason"], status["targets"][0]["message"]) == ("Restoring", "40% of coder-41")
    await recorder.restore_ended(successor, Outcome("IntegrityError", "It is damaged.", "packs/1-ab", 0, 20))
    await harness.settle()
    status = harness.restores()[-1]
    assert status["reason"] == "IntegrityError"
    assert status["conditions"][0]["status"] == "False"
    assert "packs/1-ab" in status["conditions"][0]["message"]
    (event,) = harness.cluster.events("IntegrityError", "AgentRestore")
    assert harness.cluster.events("IntegrityError", "Pod") == [event]
    assert "It is damaged." in event


async def test_a_wait_that_only_the_pod_knows_of_is_reported_once(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-41")
    await harness.disconnect(incarnation)
    recorder, head = harness.leader.recorder, harness.head()
    assert head is not None
    await recorder.granted(incarnation, head, "coder-41")
    await harness.settle()
    assert harness.restores()[-1]["reason"] == "Fetching"
    blocked = Progress("", "Fetching", reason="StoreUnavailable", message="The store cannot be reached from here.")
    restoring = Progress("", "Restoring", 40)
    for progress in (blocked, blocked, restoring, blocked):
        await recorder.restore_progressed(incarnation, progress)
        await harness.settle()
        status, condition = harness.restores()[-1], harness.restores()[-1]["conditions"][0]
        if progress is restoring:
            assert (condition["reason"], condition["message"]) == ("Restoring", "40% of coder-41")
            continue
        assert (condition["status"], condition["reason"]) == ("Unknown", "StoreUnavailable")
        assert condition["message"] == status["targets"][0]["message"] == blocked.message
        assert (status["reason"], status["epoch"], status["targets"][0]["state"]) == (
            "StoreUnavailable",
            1,
            status["reason"],
        )
        (protected,) = harness.agent()["conditions"][:1]
        assert blocked.message in protected["message"]
    events = [each for each in harness.cluster.every(EVENTS) if each["reason"] == "StoreUnavailable"]
    assert sorted(each["involvedObject"]["kind"] for each in events) == ["AgentRestore", "Pod"]
    assert {(each["type"], each["message"], each["count"]) for each in events} == {("Warning", blocked.message, 1)}
    await recorder.restore_ended(incarnation, Outcome("Restored", "", "", 410, 3100))
    await harness.settle()
    assert harness.restores()[-1]["reason"] == "Restored"


async def test_a_pods_waits_cause_a_limited_number_of_events(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    head = harness.head()
    assert head is not None
    recorder = harness.leader.recorder
    await recorder.granted(incarnation, head, None)
    for number in range(3 * MAX_WAIT_EVENTS):
        await recorder.restore_progressed(
            incarnation, Progress("", "Fetching", reason="StoreUnavailable", message=f"{number}")
        )
        await harness.settle()
    assert harness.cluster.events("StoreUnavailable", "Pod") == [f"{number}" for number in range(MAX_WAIT_EVENTS)]
    assert harness.restores()[-1]["conditions"][0]["message"] == f"{3 * MAX_WAIT_EVENTS - 1}"


async def test_a_start_ends_when_its_pod_is_deleted(harness: ReconcileHarness) -> None:
    pod = harness.pod()
    incarnation = await harness.resolve(pod)
    await harness.leader.recorder.waiting(incarnation, Wait("PredecessorRunning", "…"))
    await harness.settle()
    harness.cluster.remove(PODS, pod.name, NAMESPACE)
    await harness.advance(40)
    (status,) = harness.restores()
    assert status["reason"] == "PodGone"
    assert status["completionTime"]


async def test_a_start_recorded_by_an_earlier_leader_ends_too(harness: ReconcileHarness) -> None:
    pod = harness.pod()
    incarnation = await harness.resolve(pod)
    await harness.leader.recorder.waiting(incarnation, Wait("PredecessorRunning", "…"))
    await harness.settle()
    harness.cluster.remove(PODS, pod.name, NAMESPACE)
    await harness.new_leader()
    await harness.advance(40)
    (status,) = harness.restores()
    assert status["reason"] == "PodGone"
    assert harness.cluster.events("PodGone", "AgentRestore") == [status["conditions"][0]["message"]]


async def test_a_restarted_init_container_is_the_same_start(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    head = harness.head()
    assert head is not None
    await harness.leader.recorder.granted(incarnation, head, None)
    await harness.settle()
    (status,) = harness.restores()
    assert status["reason"] == "Fetching"
    assert "completionTime" not in status
    await harness.leader.recorder.restore_ended(incarnation, Outcome("KeptLocal"))
    await harness.settle()
    assert [each["reason"] for each in harness.restores()] == ["KeptLocal"]


async def test_ten_starts_are_kept(harness: ReconcileHarness) -> None:
    for _ in range(RESTORES_KEPT + 3):
        pod = harness.pod()
        incarnation = await harness.start(pod)
        await harness.disconnect(incarnation, released=True)
        harness.cluster.remove(PODS, pod.name, NAMESPACE)
        await harness.advance(2)
    assert len(harness.restores()) == RESTORES_KEPT


async def test_a_completed_run_is_shown(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-41")
    await harness.disconnect(incarnation, released=True, completed=True)
    assert harness.agent()["reason"] == "Completed"


async def test_no_checkpoint_is_scheduled_after_a_completed_run(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-41")
    head = harness.head()
    assert head is not None
    end = lineage.complete(harness.chain(), head, 1, incarnation.pod.uid, time_text(harness.clock.now()))
    await harness.leader.recorder.committed(CODER, None, end, "default")
    await harness.settle()
    ordered = len(harness.orders.ordered)
    await harness.advance(900, step=30)
    assert harness.agent()["reason"] == "Completed"
    assert len(harness.orders.ordered) == ordered
    await harness.start(incarnation.pod)  # its container starts again
    assert harness.agent()["reason"] != "Completed"
    await harness.advance(400, step=10)
    assert len(harness.orders.ordered) == ordered + 1
