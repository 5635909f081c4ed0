"""Checkpoints: by request, by time, by annotation; serialized, bounded, told once, and repaired from the chain."""

from typing import Any

import pytest
from savepoint.contract.control_protocol import Progress, RequestCheckpoint
from savepoint.contract.names import ANNOTATION_CHECKPOINT_NOW, LABEL_AGENT
from savepoint.errors import Unavailable
from savepoint.repository.format.canonical import time_text
from savepoint.repository.history import lineage
from savepoint_operator.cluster.kinds import CHECKPOINTS, PODS, POLICIES
from savepoint_operator.lineage.contents import contents_of

from tests.fakes.reconcile_harness import CODER, NAMESPACE, ReconcileHarness


def condition(status: dict[str, Any], kind: str = "Ready") -> dict[str, Any]:
    return next(each for each in status["conditions"] if each["type"] == kind)


async def test_a_request_becomes_an_order_and_a_ready_checkpoint(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    attempt = bench.ask()
    await bench.settle()
    assert bench.orders.ordered == [(CODER, attempt, "Manual")]
    assert bench.checkpoint("asked-1")["reason"] == "Quiescing"
    await bench.commit(who)
    status = bench.checkpoint("asked-1")
    assert (status["reason"], status["number"], status["sequence"], status["epoch"]) == ("Ready", 1, 2, 1)
    assert status["trigger"] == {"type": "Manual"}
    assert status["summary"] == {"progress": "100%", "size": "410Mi", "uploaded": "3Mi", "pause": "38ms"}
    assert status["execution"]["step"] == "docs 42 of 90"
    assert status["podRef"] == {"name": who.pod.name, "uid": who.pod.uid}
    assert condition(status)["status"] == "True"
    labels = bench.cluster.object(CHECKPOINTS, "asked-1", NAMESPACE)["metadata"]["labels"]
    assert labels == {LABEL_AGENT: "coder"}
    assert bench.agent()["latest"]["checkpointName"] == "asked-1"
    assert bench.agent()["reason"] == "Protected"


async def test_several_requests_are_answered_one_after_the_other(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    for number in range(3):
        bench.ask(f"asked-{number}")
    for number in range(3):
        await bench.pass_time(3)
        assert len(bench.orders.ordered) == number + 1
        await bench.commit(who)
    assert set(bench.checkpoints().values()) == {"Ready"}
    assert [bench.checkpoint(f"asked-{number}")["number"] for number in range(3)] == [1, 2, 3]


async def test_a_request_that_waits_says_for_what(bench: ReconcileHarness) -> None:
    await bench.start(bench.pod())
    bench.ask("first")
    bench.ask("second")
    await bench.pass_time(3)
    assert bench.checkpoint("second")["reason"] == "Pending"
    assert "comes after it" in condition(bench.checkpoint("second"))["message"]


async def test_a_commit_that_is_tried_again_says_why(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    own = bench.ask("first")
    await bench.settle()
    await bench.now_leading.recorder.delayed(CODER, own, "nobody answers at s3.test")
    await bench.settle()
    assert bench.checkpoint("first")["reason"] == "Committing"
    assert "nobody answers at s3.test" in condition(bench.checkpoint("first"))["message"]
    await bench.commit(who)
    await bench.now_leading.recorder.delayed(CODER, own, "too late to be news")
    await bench.settle()
    assert bench.checkpoint("first")["reason"] == "Ready"


async def test_without_a_sidecar_a_request_ends_within_a_bound(bench: ReconcileHarness) -> None:
    await bench.pass_time(100)
    bench.ask()
    await bench.pass_time(30)
    assert bench.checkpoint("asked-1")["reason"] == "Pending"
    await bench.pass_time(35)
    status = bench.checkpoint("asked-1")
    assert status["reason"] == "AgentNotRunning"
    assert "No pod of agent coder runs" in condition(status)["message"]
    assert bench.cluster.events("CheckpointFailed")
    await bench.pass_time(600, step=30)
    assert bench.checkpoint("asked-1")["reason"] == "AgentNotRunning"


async def test_a_new_leader_gives_sidecars_time_to_come_back(bench: ReconcileHarness) -> None:
    await bench.start(bench.pod())
    await bench.lead()
    await bench.pass_time(200)
    await bench.lead()
    bench.ask()
    await bench.pass_time(50)
    assert bench.checkpoint("asked-1")["reason"] == "Pending"


async def test_a_failure_is_told_with_the_last_good_one(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask("good")
    await bench.settle()
    await bench.commit(who)
    await bench.pass_time(41 * 60, step=60)
    bench.orders.in_flight.clear()
    bench.ask("bad")
    await bench.pass_time(900, step=60)
    await bench.end(who, "Failed", "QuiesceTimeout", "It was resumed.")
    status = bench.checkpoint("bad")
    assert status["reason"] == "QuiesceTimeout"
    assert condition(status)["message"].startswith("It was resumed. Add agent.safe_point()")
    assert any("Last good: good (" in message for message in bench.cluster.events("CheckpointFailed"))
    assert bench.agent()["lastFailure"]["reason"] == "QuiesceTimeout"
    assert bench.agent()["reason"] == "AtRisk"


async def test_a_checkpoint_by_time_has_an_object_only_once_there_is_something(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await bench.pass_time(31)
    ((_, attempt, trigger),) = bench.orders.ordered
    assert trigger == "Interval"
    assert bench.checkpoints() == {}
    await bench.now_leading.recorder.progressed(CODER, Progress(attempt, "Capturing", 5))
    await bench.settle()
    assert bench.checkpoints() == {}
    await bench.now_leading.recorder.progressed(CODER, Progress(attempt, "Uploading", 63, 63, 100))
    await bench.settle()
    assert bench.checkpoints() == {"coder-1": "Uploading"}
    assert bench.checkpoint("coder-1")["summary"]["progress"] == "63%"
    await bench.commit(who)
    assert bench.checkpoints() == {"coder-1": "Ready"}
    assert bench.checkpoint("coder-1")["trigger"]["type"] == "Interval"


async def test_an_unchanged_interval_writes_no_object_and_moves_the_recovery_point(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await bench.pass_time(31)
    await bench.commit(who)
    before = bench.agent()["recoveryPointTime"]
    await bench.pass_time(340)
    assert len(bench.orders.ordered) == 2
    await bench.end(who, "Unchanged")
    assert bench.checkpoints() == {"coder-1": "Ready"}
    assert bench.agent()["recoveryPointTime"] > before


async def test_an_interval_that_was_shown_and_found_nothing_changed_leaves_no_object(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await bench.pass_time(31)
    await bench.commit(who)
    await bench.pass_time(340)
    attempt = bench.orders.ordered[-1][1]
    await bench.now_leading.recorder.progressed(CODER, Progress(attempt, "Uploading", 10, 1, 10))
    await bench.settle()
    assert bench.checkpoints() == {"coder-1": "Ready", "coder-2": "Uploading"}
    await bench.end(who, "Unchanged")
    assert bench.checkpoints() == {"coder-1": "Ready"}


async def test_a_pods_request_that_is_never_begun_holds_up_nothing(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    ask = RequestCheckpoint("r1", "Shutdown", "the pod ends")
    first = await bench.now_leading.recorder.requested(CODER, ask)
    assert await bench.now_leading.recorder.requested(CODER, ask) == first
    await bench.pass_time(31)
    assert [trigger for _, _, trigger in bench.orders.ordered] == ["Interval"]
    await bench.commit(who)
    bench.ask("by-hand")
    await bench.settle()
    assert [trigger for _, _, trigger in bench.orders.ordered] == ["Interval", "Manual"]


async def test_what_was_asked_for_and_is_unchanged_is_the_same_checkpoint(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask("first")
    await bench.settle()
    await bench.commit(who)
    bench.ask("second")
    await bench.settle()
    await bench.end(who, "Unchanged")
    first, second = bench.checkpoint("first"), bench.checkpoint("second")
    assert (second["reason"], second["sequence"]) == ("Ready", first["sequence"])
    assert second["integrity"]["manifestDigest"] == first["integrity"]["manifestDigest"]
    assert "Nothing had changed since first" in condition(second)["message"]


async def test_the_period_is_the_policys(bench: ReconcileHarness) -> None:
    trigger = {"interval": {"periodSeconds": 10, "jitterSeconds": 0}}
    bench.cluster.put(POLICIES, "quick", NAMESPACE, spec={"triggers": [trigger]})
    who = await bench.start(bench.pod())
    for number in range(1, 4):
        await bench.pass_time(11)
        assert len(bench.orders.ordered) == number
        await bench.end(who, "Unchanged")


@pytest.mark.parametrize("spec", [{"suspend": True}, {"triggers": []}])
async def test_a_policy_may_leave_out_checkpoints_by_time(bench: ReconcileHarness, spec: dict[str, Any]) -> None:
    bench.cluster.put(POLICIES, "quiet", NAMESPACE, spec=spec)
    await bench.start(bench.pod())
    await bench.pass_time(1000, step=20)
    assert bench.orders.ordered == []
    bench.ask()
    await bench.settle()
    assert len(bench.orders.ordered) == 1


async def test_each_new_value_of_the_annotation_is_one_checkpoint(bench: ReconcileHarness) -> None:
    bench.cluster.put(POLICIES, "quiet", NAMESPACE, spec={"triggers": []})
    pod = bench.pod()
    who = await bench.start(pod)
    for value, count in (("a", 1), ("a", 1), ("b", 2), ("a", 3)):
        bench.cluster.put(PODS, pod.name, NAMESPACE, metadata={"annotations": {ANNOTATION_CHECKPOINT_NOW: value}})
        await bench.settle()
        assert len(bench.orders.ordered) == count
        if bench.orders.in_flight:
            await bench.commit(who)
        await bench.lead()
        await bench.connect(who)
        assert len(bench.checkpoints()) == count
        bench.orders.ordered = [(CODER, "", "")] * count
    assert bench.checkpoint("coder-3")["trigger"] == {"type": "Manual", "requestedBy": f"pod/{pod.name}"}


async def test_what_a_pod_asks_for_twice_is_one_attempt(bench: ReconcileHarness) -> None:
    await bench.start(bench.pod())
    recorder = bench.now_leading.recorder
    first = await recorder.requested(CODER, RequestCheckpoint("r1", "Agent", "before tool mail"))
    assert isinstance(first, str)
    assert first == await recorder.requested(CODER, RequestCheckpoint("r1", "Agent"))
    assert first != await recorder.requested(CODER, RequestCheckpoint("r2", "Agent"))


async def test_what_a_pod_asked_for_and_was_refused_leaves_nothing_behind(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await bench.now_leading.recorder.requested(CODER, RequestCheckpoint("r1", "Agent"))
    await bench.pass_time(31)
    assert [trigger for _, _, trigger in bench.orders.ordered] == ["Interval"]
    await bench.commit(who)
    await bench.pass_time(250)
    assert set(bench.checkpoints().values()) == {"Ready"}


async def test_what_an_agent_asked_for_says_why(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    asked = RequestCheckpoint("r1", "Agent", "before tool mail")
    attempt = await bench.now_leading.recorder.requested(CODER, asked)
    assert isinstance(attempt, str)
    await bench.commit(who, attempt=attempt, trigger="Agent")
    assert bench.checkpoint("coder-1")["trigger"] == {"type": "Agent", "reason": "before tool mail"}


async def test_a_shutdown_says_who_ended_the_pod(bench: ReconcileHarness) -> None:
    pod = bench.pod()
    who = await bench.start(pod)
    attempt = await bench.now_leading.recorder.requested(CODER, RequestCheckpoint("r1", "Shutdown"))
    assert isinstance(attempt, str)
    reason = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    bench.cluster.put(PODS, pod.name, NAMESPACE, status={"phase": "Running", "conditions": [reason]})
    await bench.commit(who, attempt=attempt, trigger="Shutdown")
    assert bench.checkpoint("coder-1")["trigger"] == {"type": "Drain", "reason": "EvictionByEvictionAPI"}


async def test_numbers_rise_above_names_that_users_took(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask("coder-7")
    await bench.settle()
    await bench.commit(who)
    assert bench.checkpoint("coder-7")["number"] == 7
    await bench.pass_time(400)
    await bench.commit(who)
    assert set(bench.checkpoints()) == {"coder-7", "coder-8"}


async def test_a_commit_that_nobody_heard_of_is_repaired_from_the_chain(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    await bench.commit(who, tell=False)
    assert bench.checkpoint("asked-1")["reason"] != "Ready"
    await bench.lead()
    status = bench.checkpoint("asked-1")
    assert (status["reason"], status["sequence"]) == ("Ready", 2)
    assert status["summary"] == {"progress": "100%", "size": "410Mi", "uploaded": "3Mi"}  # nobody tells the pause
    assert status["size"] == {"logical": 410 << 20, "stored": 200 << 20, "uploaded": 3 << 20}
    assert (status["type"], status["consistency"]) == ("Incremental", "Application")
    assert status["execution"] == {"openOperations": 0, "step": "docs 42 of 90"}
    assert [(each["name"], each["kind"], each["size"]) for each in status["components"]] == [
        ("workspace", "Files", 410 << 20)
    ]
    assert bench.agent()["storedSize"] == 200 << 20
    assert bench.orders.ordered == []
    assert bench.agent()["head"]["sequence"] == 2


async def test_a_commit_without_any_object_is_repaired_too(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    head = bench.head()
    assert head is not None
    offer = bench.offer(who, "ab" * 16, "Shutdown")
    lineage.commit_checkpoint(
        bench.repository(),
        bench.chain(),
        head,
        lineage.Offer(offer.attempt, offer.manifest.name, offer.manifest.size),
        epoch=1,
        pod_uid=who.pod.uid,
        time=time_text(bench.time.now()),
        trigger="Shutdown",
    )
    await bench.lead()
    assert bench.checkpoints() == {"coder-1": "Ready"}
    assert bench.checkpoint("coder-1")["trigger"]["type"] == "Shutdown"
    assert bench.checkpoint("coder-1")["summary"]["size"] == "410Mi"


async def test_a_manifest_that_cannot_be_read_costs_words_only(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    head = await bench.commit(who, tell=False)
    assert head.record.manifest is not None
    bench.repository().store.delete(f"manifests/{head.record.manifest.name}")
    await bench.lead()
    status = bench.checkpoint("asked-1")
    assert (status["reason"], status["sequence"]) == ("Ready", 2)
    assert "size" not in status


async def test_the_recovery_point_of_what_was_committed_late_is_its_cut(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    head = bench.head()
    assert head is not None
    offer, cut = bench.offer(who, "ab" * 16, "Shutdown"), bench.time.now()
    await bench.pass_time(600, step=60)
    late = lineage.commit_checkpoint(
        bench.repository(),
        bench.chain(),
        head,
        lineage.Offer(offer.attempt, offer.manifest.name, offer.manifest.size),
        epoch=1,
        pod_uid=who.pod.uid,
        time=time_text(bench.time.now()),
        trigger="Shutdown",
    )
    contents = contents_of(bench.repository(), late)
    await bench.now_leading.recorder.committed(CODER, None, late, "default", contents)
    await bench.settle()
    assert bench.agent()["recoveryPointTime"] == cut.strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_what_an_earlier_leader_began_and_nobody_ends_is_given_up(bench: ReconcileHarness) -> None:
    await bench.start(bench.pod())
    await bench.pass_time(31)
    ((_, attempt, _),) = bench.orders.ordered
    await bench.now_leading.recorder.progressed(CODER, Progress(attempt, "Uploading", 10))
    await bench.settle()
    await bench.lead()
    await bench.pass_time(50)
    assert bench.checkpoints() == {"coder-1": "Uploading"}
    await bench.pass_time(80)
    assert bench.checkpoints() == {"coder-1": "DeadlineExceeded"}
    (told,) = bench.cluster.events("CheckpointFailed", "AgentCheckpoint")
    assert told.startswith("DeadlineExceeded: The operator was restarted while this was under way")
    assert told.endswith("There is no checkpoint yet.")


async def test_a_deleted_checkpoint_does_not_come_back(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    head = await bench.commit(who)
    bench.cluster.remove(CHECKPOINTS, "asked-1", NAMESPACE)
    await bench.settle()
    await bench.now_leading.recorder.committed(CODER, None, head, "default")
    await bench.settle()
    assert bench.checkpoints() == {}
    await bench.lead()
    assert bench.checkpoints() == {}


async def test_while_the_api_server_is_down_the_name_is_not_waited_for(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await bench.pass_time(31)
    ((_, attempt, trigger),) = bench.orders.ordered
    offer = bench.offer(who, attempt, trigger)
    head = bench.head()
    assert head is not None
    bench.cluster.down = True
    with pytest.raises(Unavailable):
        await bench.now_leading.recorder.name_for(CODER, offer, head)


async def test_status_that_could_not_be_written_is_written_later(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    bench.cluster.fail[("patch", "AgentCheckpoint")] = Unavailable("once")
    await bench.end(who, "Failed", "StageFull", "The stage is full.")
    await bench.pass_time(5)
    assert bench.checkpoint("asked-1")["reason"] == "StageFull"


async def test_an_attempt_that_never_ends_is_given_up(bench: ReconcileHarness) -> None:
    await bench.start(bench.pod())
    bench.ask()
    await bench.settle()
    await bench.pass_time(2000, step=20)
    assert bench.checkpoint("asked-1")["reason"] == "DeadlineExceeded"


async def test_old_checkpoints_go_and_what_is_held_stays(bench: ReconcileHarness) -> None:
    bench.cluster.put(POLICIES, "few", NAMESPACE, spec={"triggers": [], "retention": {"keepLast": 2}})
    who = await bench.start(bench.pod())
    for number in range(1, 6):
        held = {"retention": {"hold": "Keep"}} if number == 1 else {}
        bench.ask(f"coder-{number}", **held)
        await bench.settle()
        await bench.commit(who)
    assert set(bench.checkpoints()) == {"coder-1", "coder-4", "coder-5"}
    await bench.pass_time(7 * 3600, step=600)
    agent, kept = bench.orders.collected[-1]
    assert agent == CODER
    assert kept == {bench.checkpoint(name)["sequence"] for name in ("coder-1", "coder-4", "coder-5")}
