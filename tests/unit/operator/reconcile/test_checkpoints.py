"""Checkpoints by request, schedule and annotation: one at a time, limited in time, and repaired from the chain."""

from typing import Any

import pytest
from savepoint.contract.control_protocol import Progress, RequestCheckpoint
from savepoint.contract.names import ANNOTATION_CHECKPOINT_NOW, LABEL_AGENT
from savepoint.errors import Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.history import lineage
from savepoint.repository.history.collect import CollectReport
from savepoint_operator.cluster.kinds import CHECKPOINTS, PODS, POLICIES
from savepoint_operator.lineage.contents import contents_of

from tests.fakes.reconcile_harness import CODER, NAMESPACE, ReconcileHarness


def condition(status: dict[str, Any], kind: str = "Ready") -> dict[str, Any]:
    return next(each for each in status["conditions"] if each["type"] == kind)


async def test_a_request_is_ordered_and_becomes_a_ready_checkpoint(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    attempt = harness.request()
    await harness.settle()
    assert harness.orders.ordered == [(CODER, attempt, "Manual")]
    assert harness.checkpoint("manual-1")["reason"] == "Quiescing"
    await harness.commit(incarnation)
    status = harness.checkpoint("manual-1")
    assert (status["reason"], status["number"], status["sequence"], status["epoch"]) == ("Ready", 1, 2, 1)
    assert status["trigger"] == {"type": "Manual"}
    assert status["summary"] == {"progress": "100%", "size": "410Mi", "uploaded": "3Mi", "pause": "38ms"}
    assert status["execution"]["step"] == "docs 42 of 90"
    assert status["podRef"] == {"name": incarnation.pod.name, "uid": incarnation.pod.uid}
    assert condition(status)["status"] == "True"
    labels = harness.cluster.object(CHECKPOINTS, "manual-1", NAMESPACE)["metadata"]["labels"]
    assert labels == {LABEL_AGENT: "coder"}
    assert harness.agent()["latest"]["checkpointName"] == "manual-1"
    assert harness.agent()["reason"] == "Protected"


async def test_requests_are_ordered_one_at_a_time(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    for number in range(3):
        harness.request(f"manual-{number}")
    for number in range(3):
        await harness.advance(3)
        assert len(harness.orders.ordered) == number + 1
        await harness.commit(incarnation)
    assert set(harness.checkpoints().values()) == {"Ready"}
    assert [harness.checkpoint(f"manual-{number}")["number"] for number in range(3)] == [1, 2, 3]


async def test_a_waiting_request_says_what_it_waits_for(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod())
    harness.request("first")
    harness.request("second")
    await harness.advance(3)
    assert harness.checkpoint("second")["reason"] == "Pending"
    assert "starts after it has ended" in condition(harness.checkpoint("second"))["message"]


async def test_a_delayed_commit_shows_the_cause(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    attempt = harness.request("first")
    await harness.settle()
    await harness.leader.recorder.delayed(CODER, attempt, "no answer from s3.test")
    await harness.settle()
    assert harness.checkpoint("first")["reason"] == "Committing"
    assert "no answer from s3.test" in condition(harness.checkpoint("first"))["message"]
    await harness.commit(incarnation)
    await harness.leader.recorder.delayed(CODER, attempt, "too late")
    await harness.settle()
    assert harness.checkpoint("first")["reason"] == "Ready"


async def test_a_request_without_a_sidecar_fails_after_a_minute(harness: ReconcileHarness) -> None:
    await harness.advance(100)
    harness.request()
    await harness.advance(30)
    assert harness.checkpoint("manual-1")["reason"] == "Pending"
    await harness.advance(35)
    status = harness.checkpoint("manual-1")
    assert status["reason"] == "AgentNotRunning"
    assert "No pod of agent coder runs" in condition(status)["message"]
    assert harness.cluster.events("CheckpointFailed")
    await harness.advance(600, step=30)
    assert harness.checkpoint("manual-1")["reason"] == "AgentNotRunning"


async def test_a_new_leader_gives_sidecars_time_to_reconnect(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod())
    await harness.new_leader()
    await harness.advance(200)
    await harness.new_leader()
    harness.request()
    await harness.advance(50)
    assert harness.checkpoint("manual-1")["reason"] == "Pending"


async def test_a_failure_is_reported_with_the_last_good_checkpoint(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request("good")
    await harness.settle()
    await harness.commit(incarnation)
    await harness.advance(41 * 60, step=60)
    harness.orders.in_flight.clear()
    harness.request("bad")
    await harness.advance(900, step=60)
    await harness.end_attempt(incarnation, "Failed", "QuiesceTimeout", "It was resumed.")
    status = harness.checkpoint("bad")
    assert status["reason"] == "QuiesceTimeout"
    assert condition(status)["message"].startswith("It was resumed. Add agent.safe_point()")
    assert any("Last good: good (" in message for message in harness.cluster.events("CheckpointFailed"))
    assert harness.agent()["lastFailure"]["reason"] == "QuiesceTimeout"
    assert harness.agent()["reason"] == "AtRisk"


async def test_a_scheduled_checkpoint_gets_its_object_when_it_uploads(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await harness.advance(31)
    ((_, attempt, trigger),) = harness.orders.ordered
    assert trigger == "Interval"
    assert harness.checkpoints() == {}
    await harness.leader.recorder.progressed(CODER, Progress(attempt, "Capturing", 5))
    await harness.settle()
    assert harness.checkpoints() == {}
    await harness.leader.recorder.progressed(CODER, Progress(attempt, "Uploading", 63, 63, 100))
    await harness.settle()
    assert harness.checkpoints() == {"coder-1": "Uploading"}
    assert harness.checkpoint("coder-1")["summary"]["progress"] == "63%"
    await harness.commit(incarnation)
    assert harness.checkpoints() == {"coder-1": "Ready"}
    assert harness.checkpoint("coder-1")["trigger"]["type"] == "Interval"


async def test_an_unchanged_interval_only_advances_the_recovery_point(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await harness.advance(31)
    await harness.commit(incarnation)
    before = harness.agent()["recoveryPointTime"]
    await harness.advance(340)
    assert len(harness.orders.ordered) == 2
    await harness.end_attempt(incarnation, "Unchanged")
    assert harness.checkpoints() == {"coder-1": "Ready"}
    assert harness.agent()["recoveryPointTime"] > before


async def test_the_object_of_an_attempt_that_turns_out_unchanged_is_deleted(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await harness.advance(31)
    await harness.commit(incarnation)
    await harness.advance(340)
    attempt = harness.orders.ordered[-1][1]
    await harness.leader.recorder.progressed(CODER, Progress(attempt, "Uploading", 10, 1, 10))
    await harness.settle()
    assert harness.checkpoints() == {"coder-1": "Ready", "coder-2": "Uploading"}
    await harness.end_attempt(incarnation, "Unchanged")
    assert harness.checkpoints() == {"coder-1": "Ready"}


async def test_a_pods_request_that_never_starts_blocks_no_other_checkpoint(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    request = RequestCheckpoint("r1", "Shutdown", "the pod ends")
    first = await harness.leader.recorder.requested(CODER, request)
    assert await harness.leader.recorder.requested(CODER, request) == first
    await harness.advance(31)
    assert [trigger for _, _, trigger in harness.orders.ordered] == ["Interval"]
    await harness.commit(incarnation)
    harness.request("manual")
    await harness.settle()
    assert [trigger for _, _, trigger in harness.orders.ordered] == ["Interval", "Manual"]


async def test_an_unchanged_request_shows_the_latest_checkpoint(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request("first")
    await harness.settle()
    await harness.commit(incarnation)
    harness.request("second")
    await harness.settle()
    await harness.end_attempt(incarnation, "Unchanged")
    first, second = harness.checkpoint("first"), harness.checkpoint("second")
    assert (second["reason"], second["sequence"]) == ("Ready", first["sequence"])
    assert second["integrity"]["manifestDigest"] == first["integrity"]["manifestDigest"]
    assert "Nothing has changed since first" in condition(second)["message"]


async def test_the_policy_sets_the_period(harness: ReconcileHarness) -> None:
    trigger = {"interval": {"periodSeconds": 10, "jitterSeconds": 0}}
    harness.cluster.put(POLICIES, "quick", NAMESPACE, spec={"triggers": [trigger]})
    incarnation = await harness.start(harness.pod())
    for number in range(1, 4):
        await harness.advance(11)
        assert len(harness.orders.ordered) == number
        await harness.end_attempt(incarnation, "Unchanged")


@pytest.mark.parametrize("spec", [{"suspend": True}, {"triggers": []}])
async def test_a_policy_can_disable_scheduled_checkpoints(harness: ReconcileHarness, spec: dict[str, Any]) -> None:
    harness.cluster.put(POLICIES, "quiet", NAMESPACE, spec=spec)
    await harness.start(harness.pod())
    await harness.advance(1000, step=20)
    assert harness.orders.ordered == []
    harness.request()
    await harness.settle()
    assert len(harness.orders.ordered) == 1


async def test_each_new_annotation_value_is_one_checkpoint(harness: ReconcileHarness) -> None:
    harness.cluster.put(POLICIES, "quiet", NAMESPACE, spec={"triggers": []})
    pod = harness.pod()
    incarnation = await harness.start(pod)
    for value, count in (("a", 1), ("a", 1), ("b", 2), ("a", 3)):
        harness.cluster.put(PODS, pod.name, NAMESPACE, metadata={"annotations": {ANNOTATION_CHECKPOINT_NOW: value}})
        await harness.settle()
        assert len(harness.orders.ordered) == count
        if harness.orders.in_flight:
            await harness.commit(incarnation)
        await harness.new_leader()
        await harness.connect(incarnation)
        assert len(harness.checkpoints()) == count
        harness.orders.ordered = [(CODER, "", "")] * count
    assert harness.checkpoint("coder-3")["trigger"] == {"type": "Manual", "requestedBy": f"pod/{pod.name}"}


async def test_a_repeated_request_of_a_pod_is_one_attempt(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod())
    recorder = harness.leader.recorder
    first = await recorder.requested(CODER, RequestCheckpoint("r1", "Agent", "before tool mail"))
    assert isinstance(first, str)
    assert first == await recorder.requested(CODER, RequestCheckpoint("r1", "Agent"))
    assert first != await recorder.requested(CODER, RequestCheckpoint("r2", "Agent"))


async def test_a_refused_request_of_a_pod_leaves_no_object(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await harness.leader.recorder.requested(CODER, RequestCheckpoint("r1", "Agent"))
    await harness.advance(31)
    assert [trigger for _, _, trigger in harness.orders.ordered] == ["Interval"]
    await harness.commit(incarnation)
    await harness.advance(250)
    assert set(harness.checkpoints().values()) == {"Ready"}


async def test_an_agents_request_shows_its_reason(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    request = RequestCheckpoint("r1", "Agent", "before tool mail")
    attempt = await harness.leader.recorder.requested(CODER, request)
    assert isinstance(attempt, str)
    await harness.commit(incarnation, attempt=attempt, trigger="Agent")
    assert harness.checkpoint("coder-1")["trigger"] == {"type": "Agent", "reason": "before tool mail"}


async def test_a_shutdown_shows_what_ended_the_pod(harness: ReconcileHarness) -> None:
    pod = harness.pod()
    incarnation = await harness.start(pod)
    attempt = await harness.leader.recorder.requested(CODER, RequestCheckpoint("r1", "Shutdown"))
    assert isinstance(attempt, str)
    reason = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    harness.cluster.put(PODS, pod.name, NAMESPACE, status={"phase": "Running", "conditions": [reason]})
    await harness.commit(incarnation, attempt=attempt, trigger="Shutdown")
    assert harness.checkpoint("coder-1")["trigger"] == {"type": "Drain", "reason": "EvictionByEvictionAPI"}


async def test_numbers_are_higher_than_those_in_users_names(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request("coder-7")
    await harness.settle()
    await harness.commit(incarnation)
    assert harness.checkpoint("coder-7")["number"] == 7
    await harness.advance(400)
    await harness.commit(incarnation)
    assert set(harness.checkpoints()) == {"coder-7", "coder-8"}


async def test_an_unrecorded_commit_is_repaired_from_the_chain(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    await harness.commit(incarnation, report=False)
    assert harness.checkpoint("manual-1")["reason"] != "Ready"
    await harness.new_leader()
    status = harness.checkpoint("manual-1")
    assert (status["reason"], status["sequence"]) == ("Ready", 2)
    assert status["summary"] == {"progress": "100%", "size": "410Mi", "uploaded": "3Mi"}  # the pause is unknown
    assert status["size"] == {"logical": 410 << 20, "stored": 200 << 20, "uploaded": 3 << 20}
    assert (status["type"], status["consistency"]) == ("Incremental", "Application")
    assert status["execution"] == {"openOperations": 0, "step": "docs 42 of 90"}
    assert [(each["name"], each["kind"], each["size"]) for each in status["components"]] == [
        ("workspace", "Files", 410 << 20)
    ]
    assert harness.agent()["storedSize"] == 200 << 20
    assert harness.orders.ordered == []
    assert harness.agent()["head"]["sequence"] == 2


async def test_an_unrecorded_commit_without_an_object_gets_one(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    head = harness.head()
    assert head is not None
    offer = harness.offer(incarnation, "ab" * 16, "Shutdown")
    lineage.commit_checkpoint(
        harness.repository(),
        harness.chain(),
        head,
        lineage.UploadedCheckpoint(offer.attempt, offer.manifest.name, offer.manifest.size),
        epoch=1,
        pod_uid=incarnation.pod.uid,
        time=time_text(harness.clock.now()),
        trigger="Shutdown",
    )
    await harness.new_leader()
    assert harness.checkpoints() == {"coder-1": "Ready"}
    assert harness.checkpoint("coder-1")["trigger"]["type"] == "Shutdown"
    assert harness.checkpoint("coder-1")["summary"]["size"] == "410Mi"


async def test_a_checkpoint_with_an_unreadable_manifest_lacks_only_details(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    head = await harness.commit(incarnation, report=False)
    assert head.record.manifest is not None
    harness.repository().store.delete(f"manifests/{head.record.manifest.name}")
    await harness.new_leader()
    status = harness.checkpoint("manual-1")
    assert (status["reason"], status["sequence"]) == ("Ready", 2)
    assert "size" not in status


async def test_the_recovery_point_of_a_late_commit_is_its_capture_time(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    head = harness.head()
    assert head is not None
    offer, captured = harness.offer(incarnation, "ab" * 16, "Shutdown"), harness.clock.now()
    await harness.advance(600, step=60)
    late = lineage.commit_checkpoint(
        harness.repository(),
        harness.chain(),
        head,
        lineage.UploadedCheckpoint(offer.attempt, offer.manifest.name, offer.manifest.size),
        epoch=1,
        pod_uid=incarnation.pod.uid,
        time=time_text(harness.clock.now()),
        trigger="Shutdown",
    )
    contents = contents_of(harness.repository(), late)
    await harness.leader.recorder.committed(CODER, None, late, "default", contents)
    await harness.settle()
    assert harness.agent()["recoveryPointTime"] == captured.strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_an_attempt_of_an_earlier_leader_that_is_not_reported_fails(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod())
    await harness.advance(31)
    ((_, attempt, _),) = harness.orders.ordered
    await harness.leader.recorder.progressed(CODER, Progress(attempt, "Uploading", 10))
    await harness.settle()
    await harness.new_leader()
    await harness.advance(50)
    assert harness.checkpoints() == {"coder-1": "Uploading"}
    await harness.advance(80)
    assert harness.checkpoints() == {"coder-1": "DeadlineExceeded"}
    (event,) = harness.cluster.events("CheckpointFailed", "AgentCheckpoint")
    assert event.startswith("DeadlineExceeded: The operator restarted during this attempt")
    assert event.endswith("There is no checkpoint yet.")


async def test_a_deleted_checkpoint_is_not_created_again(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    head = await harness.commit(incarnation)
    harness.cluster.remove(CHECKPOINTS, "manual-1", NAMESPACE)
    await harness.settle()
    await harness.leader.recorder.committed(CODER, None, head, "default")
    await harness.settle()
    assert harness.checkpoints() == {}
    await harness.new_leader()
    assert harness.checkpoints() == {}


async def test_no_name_is_reserved_while_the_api_server_is_down(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await harness.advance(31)
    ((_, attempt, trigger),) = harness.orders.ordered
    offer = harness.offer(incarnation, attempt, trigger)
    head = harness.head()
    assert head is not None
    harness.cluster.down = True
    with pytest.raises(Unavailable):
        await harness.leader.recorder.name_for(CODER, offer, head)


async def test_a_failed_status_write_is_retried(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    harness.cluster.fail[("patch", "AgentCheckpoint")] = Unavailable("once")
    await harness.end_attempt(incarnation, "Failed", "StageFull", "The stage is full.")
    await harness.advance(5)
    assert harness.checkpoint("manual-1")["reason"] == "StageFull"


async def test_an_attempt_without_an_outcome_fails_after_its_deadline(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    await harness.advance(2000, step=20)
    assert harness.checkpoint("manual-1")["reason"] == "DeadlineExceeded"


async def test_old_checkpoints_expire_unless_they_are_on_hold(harness: ReconcileHarness) -> None:
    harness.cluster.put(POLICIES, "few", NAMESPACE, spec={"triggers": [], "retention": {"keepLast": 2}})
    incarnation = await harness.start(harness.pod())
    for number in range(1, 6):
        held: dict[str, Any] = {"retention": {"hold": "Keep"}} if number == 1 else {}
        harness.request(f"coder-{number}", **held)
        await harness.settle()
        await harness.commit(incarnation)
    assert set(harness.checkpoints()) == {"coder-1", "coder-4", "coder-5"}
    await harness.advance(7 * 3600, step=600)
    agent, kept = harness.orders.collected[-1]
    assert agent == CODER
    assert kept == {harness.checkpoint(name)["sequence"] for name in ("coder-1", "coder-4", "coder-5")}


async def test_a_lost_pack_is_reported_on_the_agent_and_on_the_checkpoints_that_need_it(
    harness: ReconcileHarness,
) -> None:
    incarnation = await harness.start(harness.pod())
    for name in ("first", "second"):
        harness.request(name)
        await harness.settle()
        await harness.commit(incarnation)
    lost = "packs/1-a is missing, 9 bytes are expected"
    harness.orders.collect_report = CollectReport(lost=(lost,), affected=(harness.checkpoint("second")["sequence"],))
    await harness.advance(7 * 3600, step=600)
    messages = harness.cluster.events("PackLost")
    assert len(messages) == 2  # on the agent and on the second checkpoint
    assert all(lost in each and "restored whole: second." in each for each in messages)
