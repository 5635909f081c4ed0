"""The uid that a sidecar reports of its agent: shown on the ProtectedAgent, for the webhook, with an Event."""

from dataclasses import replace
from typing import Any

import pytest
from savepoint.contract.control_protocol import Result

from tests.fakes.reconcile_harness import CODER, ReconcileHarness


async def commit(harness: ReconcileHarness, incarnation: Any, uid: int | None) -> None:
    """Commit a checkpoint whose offer names this uid."""
    plain = harness.offer
    harness.offer = lambda *arguments: replace(plain(*arguments), agent_uid=uid)  # type: ignore[method-assign]
    harness.request(f"manual-{harness.random.random()}".replace(".", ""))
    await harness.settle()
    await harness.commit(incarnation)
    harness.offer = plain  # type: ignore[method-assign]


async def test_the_uid_of_a_committed_checkpoint_is_remembered(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await commit(harness, incarnation, 1000)
    assert harness.agent()["runAsUser"] == 1000 and harness.agent()["reason"] == "Protected"
    (event,) = harness.cluster.events("UidObserved")
    assert "uid 1000" in event and "next pod" in event and "runAsUser: 1000" in event
    await commit(harness, incarnation, None)
    await commit(harness, incarnation, 1000)
    assert harness.agent()["runAsUser"] == 1000 and len(harness.cluster.events("UidObserved")) == 1
    await harness.new_leader()
    await harness.settle()
    assert harness.agent()["runAsUser"] == 1000


async def test_the_uid_of_a_failed_attempt_is_remembered_too(harness: ReconcileHarness) -> None:
    await harness.start(harness.pod())
    harness.request()
    await harness.settle()
    attempt = harness.orders.in_flight.pop(CODER)
    result = Result(attempt, "Failed", "RunAsUserRequired", "cannot read /data/closed", agent_uid=1000)
    await harness.leader.recorder.failed(CODER, result)
    await harness.settle()
    assert harness.agent()["runAsUser"] == 1000 and harness.agent()["reason"] == "AtRisk"


async def test_an_agent_that_is_root_after_all_forgets_the_uid(harness: ReconcileHarness) -> None:
    incarnation = await harness.start(harness.pod())
    await commit(harness, incarnation, 1000)
    await commit(harness, incarnation, 0)
    assert "runAsUser" not in harness.agent()


@pytest.mark.parametrize("uid", [-1, 1 << 31, 1 << 52])
async def test_an_impossible_uid_is_ignored(harness: ReconcileHarness, uid: int) -> None:
    incarnation = await harness.start(harness.pod())
    await commit(harness, incarnation, uid)
    assert "runAsUser" not in harness.agent() and harness.agent()["reason"] == "Protected"
