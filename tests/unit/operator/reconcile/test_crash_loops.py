"""An agent that crashes again and again after a restore is at risk until it has stayed up."""

from typing import Any

from savepoint_operator.cluster.kinds import PODS
from savepoint_operator.model.views import PodIdentity

from tests.fakes.reconcile_harness import NAMESPACE, ReconcileHarness

ENDED = {"terminated": {"exitCode": 1, "reason": "Error"}}


async def restored(harness: ReconcileHarness) -> PodIdentity:
    """Return the running pod of an agent that was restored from its second checkpoint."""
    incarnation = await harness.start(harness.pod())
    for name in ("one", "two"):
        harness.request(name)
        await harness.settle()
        await harness.commit(incarnation)
    await harness.disconnect(incarnation, released=True)
    harness.cluster.remove(PODS, incarnation.pod.name, NAMESPACE)
    await harness.settle()
    pod = harness.pod()
    await harness.start(pod)
    assert harness.agent()["reason"] == "Protected"
    return pod


async def set_container(harness: ReconcileHarness, pod: PodIdentity, restarts: int, state: dict[str, Any]) -> None:
    raw = harness.cluster.object(PODS, pod.name, NAMESPACE)
    container = {"name": "agent", "restartCount": restarts, "state": state, "lastState": ENDED}
    harness.cluster.put(
        PODS, pod.name, NAMESPACE, metadata=raw["metadata"], spec=raw["spec"],
        status={"phase": "Running", "containerStatuses": [container]},
    )  # fmt: skip
    await harness.settle()


async def test_a_crash_loop_after_a_restore_puts_the_agent_at_risk_until_it_has_stayed_up(
    harness: ReconcileHarness,
) -> None:
    pod = await restored(harness)
    await set_container(harness, pod, 1, {"running": {"startedAt": harness.clock.now().isoformat()}})
    assert (harness.agent()["reason"], harness.agent()["restartsSinceRestore"]) == ("Protected", 1)
    await set_container(harness, pod, 3, {"waiting": {"reason": "CrashLoopBackOff"}})
    status = harness.agent()
    assert (status["reason"], status["restartsSinceRestore"]) == ("AtRisk", 3)
    assert status["crashLoop"] == {"containerName": "agent", "exitCode": 1, "reason": "Error"}
    events = harness.cluster.events("CrashLooping")
    assert len(events) == 2 and events[0] == events[1], "on the agent and on its pod"
    assert "since two was restored" in events[0] and "kubectl savepoint rollback one" in events[0]
    await set_container(harness, pod, 4, {"running": {"startedAt": harness.clock.now().isoformat()}})
    assert (harness.agent()["reason"], len(harness.cluster.events("CrashLooping"))) == ("AtRisk", 2)
    await harness.advance(200, step=10)
    status = harness.agent()
    assert (status["reason"], status["restartsSinceRestore"]) == ("Protected", 4) and "crashLoop" not in status


async def test_an_agent_that_crashes_before_it_was_ever_restored_is_not_judged(harness: ReconcileHarness) -> None:
    pod = harness.pod()
    incarnation = await harness.start(pod)
    harness.request()
    await harness.settle()
    await harness.commit(incarnation)
    await set_container(harness, pod, 5, {"waiting": {"reason": "CrashLoopBackOff"}})
    assert harness.agent()["reason"] == "Protected" and "restartsSinceRestore" not in harness.agent()
