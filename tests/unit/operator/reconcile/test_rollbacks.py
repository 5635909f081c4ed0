"""Rollbacks and resets that users request: the order of their steps, what delays them, and how they end."""

from itertools import pairwise
from typing import Any

import pytest
from savepoint.contract.names import LABEL_AGENT
from savepoint.errors import (
    IntegrityError,
    KeyMismatch,
    NotAdopted,
    SavepointError,
    StoreDenied,
    StoreMisconfigured,
    StoreUnavailable,
    Unavailable,
)
from savepoint_operator.cluster.errors import Denied
from savepoint_operator.cluster.kinds import EVENTS, PODS, RESTORES, STORES
from savepoint_operator.reconcile.agent.restores import RESTORES_KEPT
from savepoint_operator.reconcile.rollbacks import REQUEUE_SECONDS, RETRY_SECONDS
from savepoint_operator.rules.status.rollback_status import GIVE_UP_SECONDS
from savepoint_operator.rules.takeover import RECONNECT_SECONDS

from tests.fakes.reconcile_harness import CODER, NAMESPACE, ReconcileHarness, ScriptedOrders


async def ready(harness: ReconcileHarness, incarnation: Any, name: str) -> None:
    harness.request(name)
    await harness.settle()
    await harness.commit(incarnation)


GENERATED = {"generateName": "back-"}


def rollback(harness: ReconcileHarness, name: str = "back", **source: str) -> None:
    """Create an AgentRestore of mode Rollback or Reset."""
    mode = "Rollback" if "checkpointName" in source else "Reset"
    harness.cluster.put(RESTORES, name, NAMESPACE, spec={"mode": mode, "source": source}, metadata=GENERATED)


async def roll_back(harness: ReconcileHarness, incarnation: Any) -> None:
    """Roll back to coder-1; the final checkpoint finds nothing changed."""
    rollback(harness, checkpointName="coder-1")
    await harness.settle()
    await harness.end_attempt(incarnation, "Unchanged")


def restore(harness: ReconcileHarness, name: str = "back") -> dict[str, Any]:
    status: dict[str, Any] = harness.cluster.object(RESTORES, name, NAMESPACE)["status"]
    return status


async def test_a_rollback_checkpoints_first_then_commits_then_evicts(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    await harness.advance(60)
    await ready(harness, incarnation, "coder-2")
    rollback(harness, checkpointName="coder-1")
    await harness.settle()
    assert harness.orders.ordered[-1][2] == "Rollback"
    assert restore(harness)["reason"] == "Checkpointing"
    assert harness.orders.rolled_back == []
    await harness.commit(incarnation)
    await harness.advance(5)
    assert harness.orders.rolled_back == [(CODER, 2)]
    assert ("evict", "Pod", incarnation.pod.name) in harness.cluster.calls
    status = restore(harness)
    assert (status["reason"], status["resolved"]["checkpointName"]) == ("Succeeded", "coder-1")
    assert status["conditions"][0]["status"] == "True"
    assert status["summary"]["discarded"] == "60s"
    assert harness.cluster.events("Succeeded", "AgentRestore") == [status["conditions"][0]["message"]]
    assert harness.checkpoint("coder-3")["trigger"] == {"type": "Rollback", "reason": "before AgentRestore back"}
    assert harness.agent()["latest"]["checkpointName"] == "coder-1"
    await harness.advance(100)
    assert len(harness.orders.rolled_back) == 1
    await harness.start(harness.pod())
    resume = next(each for each in harness.restores() if each.get("epoch") == 2)
    assert resume["resolved"]["checkpointName"] == "coder-1"


async def test_while_the_pod_is_evicted_the_condition_names_both(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    evict, messages = harness.cluster.evict, list[str]()

    async def record(namespace: str, name: str, uid: str) -> None:
        messages.append(restore(harness)["conditions"][0]["message"])
        await evict(namespace, name, uid)

    monkeypatch.setattr(harness.cluster, "evict", record)
    await roll_back(harness, incarnation)
    await harness.advance(REQUEUE_SECONDS)
    assert messages == [f"Rolled back to coder-1; evicting pod {incarnation.pod.name}."]
    assert harness.cluster.events("RolledBack", "Pod") == [
        "Agent coder was rolled back to coder-1 by AgentRestore back, so this pod was evicted. "
        "The next pod restores it."
    ]


async def test_a_rollback_without_a_pod_is_only_a_record(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    await harness.disconnect(incarnation, released=True)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    rollback(harness, agent="coder")
    await harness.advance(5)
    assert harness.orders.rolled_back == [(CODER, None)]
    assert restore(harness)["reason"] == "Succeeded"
    assert "latest" not in harness.agent()


async def test_a_new_leader_finishes_a_rollback(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    harness.cluster.blocked.add(incarnation.pod.name)
    await roll_back(harness, incarnation)
    await harness.advance(5)
    assert restore(harness)["reason"] == "EvictionBlocked"
    before = harness.head()
    await harness.new_leader()
    harness.cluster.blocked.clear()
    await harness.advance(15)
    assert restore(harness)["reason"] == "Succeeded"
    assert harness.head() == before
    assert harness.orders.rolled_back == []


@pytest.mark.parametrize("applied", [False, True])
async def test_ten_rollbacks_are_kept_besides_the_starts(harness: ReconcileHarness, applied: bool) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    harness.request("slow")
    await harness.settle()
    for number in range(RESTORES_KEPT + 3):
        name, spec = f"back-{number}", {"mode": "Rollback", "source": {"checkpointName": "slow"}}
        harness.cluster.put(RESTORES, name, NAMESPACE, spec=spec, metadata={} if applied else GENERATED)
        await harness.advance(1)
    if applied:  # a tool would create it again, and so request the same rollback once more
        assert restore(harness, "back-0")["reason"]
        return
    left = {raw["metadata"]["name"] for raw in harness.cluster.every(RESTORES) if raw["spec"]["mode"] == "Rollback"}
    assert left == {f"back-{number}" for number in range(3, RESTORES_KEPT + 3)}
    assert restore(harness, "back-3")["agent"] == "coder"
    assert harness.cluster.object(RESTORES, "back-3", NAMESPACE)["metadata"]["labels"] == {LABEL_AGENT: "coder"}
    assert [each["reason"] for each in harness.restores() if each.get("targets")] == ["Fresh"]
    rollback(harness, "never", checkpointName="never")
    rollback(harness, "start-over", agent="coder")
    await harness.settle()
    assert "agent" not in restore(harness, "never")
    assert "agent" in restore(harness, "start-over")


async def test_an_unfinished_rollback_is_not_deleted(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    rollback(harness, "first", checkpointName="coder-1")
    await harness.settle()
    for number in range(RESTORES_KEPT + 1):
        rollback(harness, f"more-{number:02}", checkpointName="coder-1")
        await harness.settle()
    assert restore(harness, "first")["reason"] == "Checkpointing"


@pytest.mark.parametrize(
    ("source", "reason"),
    [({"checkpointName": "never"}, "CheckpointNotFound"), ({"agent": "never"}, "AgentNotFound")],
)
async def test_an_impossible_rollback_ends_at_once(
    harness: ReconcileHarness, source: dict[str, str], reason: str
) -> None:
    rollback(harness, **source)
    await harness.settle()
    status = restore(harness)
    assert (status["reason"], status["conditions"][0]["status"]) == (reason, "False")
    assert status["completionTime"]
    assert harness.cluster.events(reason)


async def test_a_checkpoint_that_is_not_ready_cannot_be_rolled_back_to(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod())
    harness.request("slow")
    await harness.settle()
    rollback(harness, checkpointName="slow")
    await harness.settle()
    assert restore(harness)["reason"] == "CheckpointNotReady"


# -- a new leader -------------------------------------------------------------------------------------------------


async def test_a_new_leader_gives_the_sidecar_time_to_connect(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    await harness.new_leader()
    rollback(harness, checkpointName="coder-1")
    await harness.advance(RECONNECT_SECONDS - 5)
    assert (harness.orders.ordered, harness.orders.rolled_back) == ([], [])
    assert restore(harness)["reason"] == "Waiting"
    await harness.connect(incarnation)
    await harness.advance(REQUEUE_SECONDS)
    assert [trigger for _, _, trigger in harness.orders.ordered] == ["Rollback"]
    await harness.commit(incarnation)
    await harness.advance(REQUEUE_SECONDS)
    assert harness.orders.rolled_back == [(CODER, 2)]
    assert harness.checkpoint("coder-2")["trigger"] == {"type": "Rollback", "reason": "before AgentRestore back"}


async def test_a_sidecar_that_does_not_connect_in_time_is_skipped(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    await harness.new_leader()
    rollback(harness, checkpointName="coder-1")
    await harness.advance(RECONNECT_SECONDS - 1)
    assert harness.orders.rolled_back == []
    await harness.advance(1 + REQUEUE_SECONDS)
    assert (harness.orders.ordered, harness.orders.rolled_back) == ([], [(CODER, 2)])
    assert restore(harness)["reason"] == "Succeeded"


async def test_the_sidecar_of_a_pending_pod_is_not_waited_for(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    harness.cluster.put(PODS, incarnation.pod.name, NAMESPACE, status={"phase": "Pending"})
    await harness.new_leader()
    rollback(harness, checkpointName="coder-1")
    await harness.settle()
    assert harness.orders.rolled_back == [(CODER, 2)]


# -- faults -------------------------------------------------------------------------------------------------------


def warnings(harness: ReconcileHarness) -> list[str]:
    """Return the reasons of the Warning Events on AgentRestore back, oldest first."""
    events = [each for each in harness.cluster.every(EVENTS) if each["involvedObject"]["name"] == "back"]
    return [each["reason"] for each in events if each["type"] == "Warning"]


async def agent_without_pod(harness: ReconcileHarness) -> None:
    """Start an agent, take a checkpoint, and delete its pod."""
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    await harness.disconnect(incarnation, released=True)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.settle()


def refusing(harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch, *errors: SavepointError) -> list[float]:
    """Make each rollback fail with the next error, then with the last one; return the times of the tries."""
    tried: list[float] = []

    async def refuse(*_: object) -> None:
        tried.append(harness.clock.seconds)
        raise errors[min(len(tried), len(errors)) - 1]

    monkeypatch.setattr(ScriptedOrders, "rollback", refuse)
    return tried


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (StoreUnavailable("the store does not answer"), "Check the conditions of the AgentCheckpointStore."),
        (StoreDenied("the store refuses its keys"), "Check the permissions of the store's credentials."),
        (StoreMisconfigured("there is no such bucket"), "Check the conditions of the AgentCheckpointStore."),
        (KeyMismatch("written under another key; give Savepoint its own"), ""),
        (NotAdopted("the store belongs to another; use a prefix of its own"), ""),
        (Unavailable("it has no commit record yet"), ""),
    ],
    ids=lambda each: each.reason if isinstance(each, SavepointError) else "",
)
async def test_a_fault_is_reported_retried_and_given_up_on(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch, error: SavepointError, step: str
) -> None:
    await agent_without_pod(harness)
    tried = refusing(harness, monkeypatch, error)
    rollback(harness, checkpointName="coder-1")
    await harness.settle()
    status = restore(harness)
    condition = status["conditions"][0]
    assert (status["reason"], condition["status"], condition["reason"]) == (error.reason, "Unknown", error.reason)
    assert str(error) in condition["message"]
    assert step in condition["message"]
    assert "AgentCheckpoint to retry" not in condition["message"]
    assert harness.cluster.events(error.reason, "AgentRestore") == [condition["message"]]
    assert "completionTime" not in status
    await harness.advance(GIVE_UP_SECONDS - 1)
    assert restore(harness)["conditions"] == status["conditions"]
    assert warnings(harness) == [error.reason]
    assert {later - earlier for earlier, later in pairwise(tried)} == {RETRY_SECONDS}
    await harness.advance(RETRY_SECONDS + 1)
    status = restore(harness)
    assert (status["reason"], status["conditions"][0]["status"]) == (error.reason, "False")
    given_up = "The operator gave up after 10m. Fix the cause and create another AgentRestore"
    assert given_up in status["conditions"][0]["message"]
    assert status["completionTime"]
    count = len(tried)
    await harness.advance(60, step=5)
    assert len(tried) == count


async def test_a_rollback_continues_once_the_store_is_usable_again(harness: ReconcileHarness) -> None:
    await agent_without_pod(harness)
    spec = harness.cluster.object(STORES, "default")["spec"]
    harness.cluster.remove(STORES, "default")
    rollback(harness, checkpointName="coder-1")
    await harness.advance(30)
    status = restore(harness)
    assert status["reason"] == "StoreMisconfigured"
    assert "AgentCheckpointStore default does not exist: create it" in status["conditions"][0]["message"]
    harness.cluster.put(STORES, "default", spec=spec, metadata={"uid": "another"})
    await harness.advance(30)
    assert restore(harness)["reason"] == "Succeeded"
    assert warnings(harness)[0] == "StoreMisconfigured"
    assert harness.orders.rolled_back == [(CODER, 2)]


async def test_each_new_reason_is_one_event_whatever_the_message(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent_without_pod(harness)
    tried = refusing(
        harness,
        monkeypatch,
        StoreUnavailable("request 1 had no answer"),
        StoreUnavailable("request 2 had no answer"),
        StoreDenied("the keys are wrong"),
    )
    rollback(harness, checkpointName="coder-1")
    await harness.settle()
    assert len(tried) == 1
    await harness.advance(RETRY_SECONDS)
    assert len(tried) == 2  # a new message does not cause an earlier retry
    assert "request 2" in restore(harness)["conditions"][0]["message"]
    await harness.advance(5 * RETRY_SECONDS)
    assert warnings(harness) == ["StoreUnavailable", "StoreDenied"]


async def test_a_permanent_fault_is_not_retried(harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    await agent_without_pod(harness)
    tried = refusing(harness, monkeypatch, IntegrityError("record 3 is damaged", "commits/3"))
    rollback(harness, checkpointName="coder-1")
    await harness.advance(20)
    status = restore(harness)
    assert (status["reason"], status["conditions"][0]["status"]) == ("IntegrityError", "False")
    assert "record 3 is damaged. Run `savepoint verify`" in status["conditions"][0]["message"]
    assert len(tried) == 1


async def test_a_new_leader_retries_for_the_full_time(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent_without_pod(harness)
    refusing(harness, monkeypatch, StoreUnavailable("the store does not answer"))
    rollback(harness, checkpointName="coder-1")
    await harness.settle()
    harness.clock.seconds += 3 * GIVE_UP_SECONDS  # without a leader
    await harness.new_leader()
    await harness.advance(20)
    assert restore(harness)["conditions"][0]["status"] == "Unknown"
    await harness.advance(GIVE_UP_SECONDS)
    assert restore(harness)["conditions"][0]["status"] == "False"


async def test_the_final_checkpoint_is_taken_once_however_often_the_rollback_fails(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    refusing(harness, monkeypatch, StoreUnavailable("the store does not answer"))
    await roll_back(harness, incarnation)
    await harness.advance(30)
    assert restore(harness)["reason"] == "StoreUnavailable"
    assert [trigger for _, _, trigger in harness.orders.ordered].count("Rollback") == 1


async def test_a_blocked_eviction_is_reported_once_and_retried_without_limit(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    harness.cluster.blocked.add(incarnation.pod.name)
    await roll_back(harness, incarnation)
    await harness.advance(3 * GIVE_UP_SECONDS, step=5)
    status = restore(harness)
    condition = status["conditions"][0]
    assert (status["reason"], condition["status"]) == ("EvictionBlocked", "Unknown")
    assert f"Pod {incarnation.pod.name} cannot be evicted now" in condition["message"]
    assert "delete the pod by hand" in condition["message"]
    assert harness.cluster.events("EvictionBlocked", "AgentRestore") == [condition["message"]]
    harness.cluster.blocked.clear()
    await harness.advance(15)
    assert restore(harness)["reason"] == "Succeeded"


async def test_an_eviction_without_permission_ends_and_says_what_is_recorded(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")

    async def forbid(*_: object) -> None:
        raise Denied("the operator may not evict pods")

    monkeypatch.setattr(harness.cluster, "evict", forbid)
    await roll_back(harness, incarnation)
    await harness.advance(GIVE_UP_SECONDS + 20, step=5)
    status = restore(harness)
    assert (status["reason"], status["conditions"][0]["status"]) == ("Forbidden", "False")
    assert "takes effect in the agent's next pod. Delete the running pod." in status["conditions"][0]["message"]
    assert status["resolved"]["checkpointName"] == "coder-1"
    assert len(harness.orders.rolled_back) == 1


async def test_only_consecutive_failures_end_a_rollback(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    incarnation = await harness.start(harness.pod())
    await ready(harness, incarnation, "coder-1")
    evict, denied = harness.cluster.evict, {incarnation.pod.name}

    async def sometimes(namespace: str, name: str, uid: str) -> None:
        if name in denied:
            raise Denied("the operator may not evict pods")
        await evict(namespace, name, uid)

    monkeypatch.setattr(harness.cluster, "evict", sometimes)
    harness.cluster.blocked.add(incarnation.pod.name)
    await roll_back(harness, incarnation)
    for reason in ("Forbidden", "EvictionBlocked", "Forbidden"):
        denied = {incarnation.pod.name} if reason == "Forbidden" else set()
        await harness.advance(GIVE_UP_SECONDS - 20, step=5)
        status = restore(harness)
        assert (status["reason"], status["conditions"][0]["status"]) == (reason, "Unknown")
    await harness.advance(30, step=5)
    assert restore(harness)["conditions"][0]["status"] == "False"
