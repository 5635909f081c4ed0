"""Rollbacks and resets that users ask for: in what order, what keeps them, and how they end."""

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
from savepoint_operator.reconcile.agent.restores import KEPT
from savepoint_operator.reconcile.rollbacks import AGAIN_SECONDS, RETRY_SECONDS
from savepoint_operator.rules.status.rollback_status import GIVE_UP_SECONDS
from savepoint_operator.rules.takeover import RECONNECT_SECONDS

from tests.fakes.reconcile_harness import CODER, NAMESPACE, ReconcileHarness, ScriptedOrders


async def ready(bench: ReconcileHarness, who: Any, name: str) -> None:
    bench.ask(name)
    await bench.settle()
    await bench.commit(who)


GENERATED = {"generateName": "back-"}


def rollback(bench: ReconcileHarness, name: str = "back", **source: str) -> None:
    mode = "Rollback" if "checkpointName" in source else "Reset"
    bench.cluster.put(RESTORES, name, NAMESPACE, spec={"mode": mode, "source": source}, metadata=GENERATED)


async def go_back(bench: ReconcileHarness, who: Any) -> None:
    """A rollback to coder-1 whose last checkpoint finds nothing changed."""
    rollback(bench, checkpointName="coder-1")
    await bench.settle()
    await bench.end(who, "Unchanged")


def restore(bench: ReconcileHarness, name: str = "back") -> dict[str, Any]:
    status: dict[str, Any] = bench.cluster.object(RESTORES, name, NAMESPACE)["status"]
    return status


async def test_a_rollback_checkpoints_first_then_commits_then_evicts(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    await bench.pass_time(60)
    await ready(bench, who, "coder-2")
    rollback(bench, checkpointName="coder-1")
    await bench.settle()
    assert bench.orders.ordered[-1][2] == "Rollback"
    assert restore(bench)["reason"] == "Checkpointing"
    assert bench.orders.rolled_back == []
    await bench.commit(who)
    await bench.pass_time(5)
    assert bench.orders.rolled_back == [(CODER, 2)]
    assert ("evict", "Pod", who.pod.name) in bench.cluster.calls
    status = restore(bench)
    assert (status["reason"], status["resolved"]["checkpointName"]) == ("Succeeded", "coder-1")
    assert status["conditions"][0]["status"] == "True"
    assert status["summary"]["discarded"] == "60s"
    assert bench.cluster.events("Succeeded", "AgentRestore") == [status["conditions"][0]["message"]]
    assert bench.checkpoint("coder-3")["trigger"] == {"type": "Rollback", "reason": "before AgentRestore back"}
    assert bench.agent()["latest"]["checkpointName"] == "coder-1"
    await bench.pass_time(100)
    assert len(bench.orders.rolled_back) == 1
    await bench.start(bench.pod())
    resume = next(each for each in bench.restores() if each.get("epoch") == 2)
    assert resume["resolved"]["checkpointName"] == "coder-1"


async def test_without_a_pod_it_is_only_the_record(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    await bench.disconnect(who, released=True)
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    rollback(bench, agent="coder")
    await bench.pass_time(5)
    assert bench.orders.rolled_back == [(CODER, None)]
    assert restore(bench)["reason"] == "Succeeded"
    assert "latest" not in bench.agent()


async def test_a_new_leader_finishes_what_the_old_one_began(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    bench.cluster.blocked.add(who.pod.name)
    await go_back(bench, who)
    await bench.pass_time(5)
    assert restore(bench)["reason"] == "EvictionBlocked"
    before = bench.head()
    await bench.lead()
    bench.cluster.blocked.clear()
    await bench.pass_time(15)
    assert restore(bench)["reason"] == "Succeeded"
    assert bench.head() == before
    assert bench.orders.rolled_back == []


@pytest.mark.parametrize("applied", [False, True])
async def test_ten_that_users_asked_for_are_kept_beside_the_starts(bench: ReconcileHarness, applied: bool) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    bench.ask("slow")
    await bench.settle()
    for number in range(KEPT + 3):
        name, spec = f"back-{number}", {"mode": "Rollback", "source": {"checkpointName": "slow"}}
        bench.cluster.put(RESTORES, name, NAMESPACE, spec=spec, metadata={} if applied else GENERATED)
        await bench.pass_time(1)
    if applied:  # a tool would make it again, and ask for the same rollback once more
        assert restore(bench, "back-0")["reason"]
        return
    left = {raw["metadata"]["name"] for raw in bench.cluster.every(RESTORES) if raw["spec"]["mode"] == "Rollback"}
    assert left == {f"back-{number}" for number in range(3, KEPT + 3)}
    assert restore(bench, "back-3")["agent"] == "coder"
    assert bench.cluster.object(RESTORES, "back-3", NAMESPACE)["metadata"]["labels"] == {LABEL_AGENT: "coder"}
    assert [each["reason"] for each in bench.restores() if each.get("targets")] == ["Fresh"]
    rollback(bench, "never", checkpointName="never")
    rollback(bench, "start-over", agent="coder")
    await bench.settle()
    assert "agent" not in restore(bench, "never")
    assert "agent" in restore(bench, "start-over")


async def test_what_has_not_ended_is_not_removed(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    rollback(bench, "first", checkpointName="coder-1")
    await bench.settle()
    for number in range(KEPT + 1):
        rollback(bench, f"more-{number:02}", checkpointName="coder-1")
        await bench.settle()
    assert restore(bench, "first")["reason"] == "Checkpointing"


@pytest.mark.parametrize(
    ("source", "reason"),
    [({"checkpointName": "never"}, "CheckpointNotFound"), ({"agent": "never"}, "AgentNotFound")],
)
async def test_what_cannot_be_done_ends_at_once(bench: ReconcileHarness, source: dict[str, str], reason: str) -> None:
    rollback(bench, **source)
    await bench.settle()
    status = restore(bench)
    assert (status["reason"], status["conditions"][0]["status"]) == (reason, "False")
    assert status["completionTime"]
    assert bench.cluster.events(reason)


async def test_a_checkpoint_that_is_not_ready_is_no_goal(bench: ReconcileHarness) -> None:
    await bench.start(bench.pod())
    bench.ask("slow")
    await bench.settle()
    rollback(bench, checkpointName="slow")
    await bench.settle()
    assert restore(bench)["reason"] == "CheckpointNotReady"


# -- a leader that has only begun ---------------------------------------------------------------------------------


async def test_a_new_leader_gives_the_sidecar_time_to_dial(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    await bench.lead()
    rollback(bench, checkpointName="coder-1")
    await bench.pass_time(RECONNECT_SECONDS - 5)
    assert (bench.orders.ordered, bench.orders.rolled_back) == ([], [])
    assert restore(bench)["reason"] == "Waiting"
    await bench.connect(who)
    await bench.pass_time(AGAIN_SECONDS)
    assert [trigger for _, _, trigger in bench.orders.ordered] == ["Rollback"]
    await bench.commit(who)
    await bench.pass_time(AGAIN_SECONDS)
    assert bench.orders.rolled_back == [(CODER, 2)]
    assert bench.checkpoint("coder-2")["trigger"] == {"type": "Rollback", "reason": "before AgentRestore back"}


async def test_a_sidecar_that_does_not_dial_is_not_waited_for_longer(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    await bench.lead()
    rollback(bench, checkpointName="coder-1")
    await bench.pass_time(RECONNECT_SECONDS - 1)
    assert bench.orders.rolled_back == []
    await bench.pass_time(1 + AGAIN_SECONDS)
    assert (bench.orders.ordered, bench.orders.rolled_back) == ([], [(CODER, 2)])
    assert restore(bench)["reason"] == "Succeeded"


async def test_a_pod_that_does_not_run_has_no_sidecar_that_could_dial(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    bench.cluster.put(PODS, who.pod.name, NAMESPACE, status={"phase": "Pending"})
    await bench.lead()
    rollback(bench, checkpointName="coder-1")
    await bench.settle()
    assert bench.orders.rolled_back == [(CODER, 2)]


# -- what keeps it from going on ----------------------------------------------------------------------------------


def warnings(bench: ReconcileHarness) -> list[str]:
    """Reasons of the Warning Events on AgentRestores that users made, oldest first."""
    events = [each for each in bench.cluster.every(EVENTS) if each["involvedObject"]["name"] == "back"]
    return [each["reason"] for each in events if each["type"] == "Warning"]


async def no_pod(bench: ReconcileHarness) -> None:
    """An agent with a checkpoint, and nothing that runs."""
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    await bench.disconnect(who, released=True)
    bench.cluster.remove(PODS, who.pod.name, NAMESPACE)
    await bench.settle()


def refusing(bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch, *errors: SavepointError) -> list[float]:
    """Each rollback is refused by the next of these, the last one for good; the seconds at which it was tried."""
    tried: list[float] = []

    async def refuse(*_: object) -> None:
        tried.append(bench.time.seconds)
        raise errors[min(len(tried), len(errors)) - 1]

    monkeypatch.setattr(ScriptedOrders, "rollback", refuse)
    return tried


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (StoreUnavailable("nobody answers"), "Look at the conditions of the AgentCheckpointStore."),
        (StoreDenied("the store refuses its keys"), "Check the rights of the store's credentials."),
        (StoreMisconfigured("there is no such bucket"), "Look at the conditions of the AgentCheckpointStore."),
        (KeyMismatch("written under another key; give Savepoint its own"), ""),
        (NotAdopted("the store belongs to another; use a prefix of its own"), ""),
        (Unavailable("it has no commit record yet"), ""),
    ],
    ids=lambda each: each.reason if isinstance(each, SavepointError) else "",
)
async def test_what_keeps_it_is_told_tried_again_and_given_up(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch, error: SavepointError, step: str
) -> None:
    await no_pod(bench)
    tried = refusing(bench, monkeypatch, error)
    rollback(bench, checkpointName="coder-1")
    await bench.settle()
    status = restore(bench)
    condition = status["conditions"][0]
    assert (status["reason"], condition["status"], condition["reason"]) == (error.reason, "Unknown", error.reason)
    assert str(error) in condition["message"]
    assert step in condition["message"]
    assert "another AgentCheckpoint" not in condition["message"]
    assert bench.cluster.events(error.reason, "AgentRestore") == [condition["message"]]
    assert "completionTime" not in status
    await bench.pass_time(GIVE_UP_SECONDS - 1)
    assert restore(bench)["conditions"] == status["conditions"]
    assert warnings(bench) == [error.reason]
    assert {later - sooner for sooner, later in pairwise(tried)} == {RETRY_SECONDS}
    await bench.pass_time(RETRY_SECONDS + 1)
    status = restore(bench)
    assert (status["reason"], status["conditions"][0]["status"]) == (error.reason, "False")
    assert "It was tried for 10m. Create another AgentRestore" in status["conditions"][0]["message"]
    assert status["completionTime"]
    count = len(tried)
    await bench.pass_time(60, step=5)
    assert len(tried) == count


async def test_it_goes_on_once_the_store_is_back(bench: ReconcileHarness) -> None:
    await no_pod(bench)
    spec = bench.cluster.object(STORES, "default")["spec"]
    bench.cluster.remove(STORES, "default")
    rollback(bench, checkpointName="coder-1")
    await bench.pass_time(30)
    status = restore(bench)
    assert status["reason"] == "StoreMisconfigured"
    assert "AgentCheckpointStore default does not exist: create it" in status["conditions"][0]["message"]
    bench.cluster.put(STORES, "default", spec=spec, metadata={"uid": "another"})
    await bench.pass_time(30)
    assert restore(bench)["reason"] == "Succeeded"
    assert warnings(bench)[0] == "StoreMisconfigured"
    assert bench.orders.rolled_back == [(CODER, 2)]


async def test_each_new_reason_is_one_event_whatever_the_words(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await no_pod(bench)
    tried = refusing(
        bench,
        monkeypatch,
        StoreUnavailable("request 1 had no answer"),
        StoreUnavailable("request 2 had no answer"),
        StoreDenied("the keys are wrong"),
    )
    rollback(bench, checkpointName="coder-1")
    await bench.settle()
    assert len(tried) == 1
    await bench.pass_time(RETRY_SECONDS)
    assert len(tried) == 2  # that its words are new is no reason to ask again at once
    assert "request 2" in restore(bench)["conditions"][0]["message"]
    await bench.pass_time(5 * RETRY_SECONDS)
    assert warnings(bench) == ["StoreUnavailable", "StoreDenied"]


async def test_what_can_never_be_done_is_not_tried_again(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await no_pod(bench)
    tried = refusing(bench, monkeypatch, IntegrityError("record 3 is damaged", "commits/3"))
    rollback(bench, checkpointName="coder-1")
    await bench.pass_time(20)
    status = restore(bench)
    assert (status["reason"], status["conditions"][0]["status"]) == ("IntegrityError", "False")
    assert "record 3 is damaged. Look at the store" in status["conditions"][0]["message"]
    assert len(tried) == 1


async def test_a_new_leader_has_as_long_as_the_one_before(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await no_pod(bench)
    refusing(bench, monkeypatch, StoreUnavailable("nobody answers"))
    rollback(bench, checkpointName="coder-1")
    await bench.settle()
    bench.time.seconds += 3 * GIVE_UP_SECONDS  # nobody leads
    await bench.lead()
    await bench.pass_time(20)
    assert restore(bench)["conditions"][0]["status"] == "Unknown"
    await bench.pass_time(GIVE_UP_SECONDS)
    assert restore(bench)["conditions"][0]["status"] == "False"


async def test_the_last_checkpoint_is_taken_once_however_often_it_fails(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    refusing(bench, monkeypatch, StoreUnavailable("nobody answers"))
    await go_back(bench, who)
    await bench.pass_time(30)
    assert restore(bench)["reason"] == "StoreUnavailable"
    assert [trigger for _, _, trigger in bench.orders.ordered].count("Rollback") == 1


async def test_an_eviction_that_a_budget_forbids_is_told_once_and_has_no_bound(bench: ReconcileHarness) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    bench.cluster.blocked.add(who.pod.name)
    await go_back(bench, who)
    await bench.pass_time(3 * GIVE_UP_SECONDS, step=5)
    status = restore(bench)
    condition = status["conditions"][0]
    assert (status["reason"], condition["status"]) == ("EvictionBlocked", "Unknown")
    assert f"Pod {who.pod.name} cannot be evicted now" in condition["message"]
    assert "delete the pod by hand" in condition["message"]
    assert bench.cluster.events("EvictionBlocked", "AgentRestore") == [condition["message"]]
    bench.cluster.blocked.clear()
    await bench.pass_time(15)
    assert restore(bench)["reason"] == "Succeeded"


async def test_an_eviction_that_nobody_permits_ends_and_says_what_is_recorded(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")

    async def forbid(*_: object) -> None:
        raise Denied("the operator may not evict pods")

    monkeypatch.setattr(bench.cluster, "evict", forbid)
    await go_back(bench, who)
    await bench.pass_time(GIVE_UP_SECONDS + 20, step=5)
    status = restore(bench)
    assert (status["reason"], status["conditions"][0]["status"]) == ("Forbidden", "False")
    assert "its next pod restores it, so delete the one that runs" in status["conditions"][0]["message"]
    assert status["resolved"]["checkpointName"] == "coder-1"
    assert len(bench.orders.rolled_back) == 1


async def test_only_failures_that_nothing_interrupts_end_it(
    bench: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = await bench.start(bench.pod())
    await ready(bench, who, "coder-1")
    evict, denied = bench.cluster.evict, {who.pod.name}

    async def sometimes(namespace: str, name: str, uid: str) -> None:
        if name in denied:
            raise Denied("the operator may not evict pods")
        await evict(namespace, name, uid)

    monkeypatch.setattr(bench.cluster, "evict", sometimes)
    bench.cluster.blocked.add(who.pod.name)
    await go_back(bench, who)
    for reason in ("Forbidden", "EvictionBlocked", "Forbidden"):
        denied = {who.pod.name} if reason == "Forbidden" else set()
        await bench.pass_time(GIVE_UP_SECONDS - 20, step=5)
        status = restore(bench)
        assert (status["reason"], status["conditions"][0]["status"]) == (reason, "Unknown")
    await bench.pass_time(30, step=5)
    assert restore(bench)["conditions"][0]["status"] == "False"
