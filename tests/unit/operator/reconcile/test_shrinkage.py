"""A checkpoint that lost much of the state: it is shown, reported once, and the one before it stays."""

from dataclasses import replace
from typing import Any

import pytest
from savepoint.contract.control_protocol import Offer
from savepoint.contract.shrinkage import Shrinkage
from savepoint_operator.cluster.kinds import CHECKPOINTS, POLICIES
from savepoint_operator.model.views import Incarnation

from tests.fakes.reconcile_harness import NAMESPACE, ReconcileHarness


class Losses:
    """Lets the harness offer checkpoints with these losses of state."""

    def __init__(self, harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        self.harness, original = harness, harness.offer

        def offer(incarnation: Incarnation, attempt: str, trigger: str) -> Offer:
            return replace(original(incarnation, attempt, trigger), shrinkages=self.open)

        self.open: tuple[Shrinkage, ...] = ()
        monkeypatch.setattr(harness, "offer", offer)

    async def checkpoint(self, incarnation: Incarnation, name: str, *losses: Shrinkage) -> int:
        """Take a checkpoint with these losses; return its sequence."""
        self.open = losses
        self.harness.request(name)
        await self.harness.settle()
        await self.harness.commit(incarnation)
        return int(self.harness.checkpoint(name)["sequence"]) if name in self.harness.checkpoints() else 0


@pytest.fixture
def losses(harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch) -> Losses:
    harness.cluster.put(POLICIES, "few", NAMESPACE, spec={"triggers": [], "retention": {"keepLast": 1}})
    return Losses(harness, monkeypatch)


async def test_a_loss_is_shown_and_reported_and_the_last_good_checkpoint_stays(
    harness: ReconcileHarness, losses: Losses
) -> None:
    incarnation = await harness.start(harness.pod())
    await losses.checkpoint(incarnation, "first")
    good = await losses.checkpoint(incarnation, "good")
    loss = Shrinkage(good, "", 400 << 20, 12 << 20, 2000, 212)
    await losses.checkpoint(incarnation, "bad", loss)
    shown: dict[str, Any] = harness.checkpoint("bad")["shrinkages"][0]
    assert shown == {
        "sequence": good, "bytesBefore": 400 << 20, "bytesNow": 12 << 20, "filesBefore": 2000, "filesNow": 212,
    }  # fmt: skip
    text = "The state of agent coder shrank from 400Mi in 2000 files to 12Mi in 212 files. Checkpoint good"
    assert harness.agent()["shrank"]["checkpointName"] == "good"
    assert harness.agent()["shrank"]["message"].startswith(text)
    assert len(harness.cluster.events("StateShrank")) == 2  # on the agent and on the checkpoint
    assert set(harness.checkpoints()) == {"good", "bad"}
    for number in range(3):
        await losses.checkpoint(incarnation, f"later-{number}", loss)
    assert set(harness.checkpoints()) == {"good", "later-2"}
    assert len(harness.cluster.events("StateShrank")) == 2


async def test_once_the_state_has_grown_again_the_loss_is_forgotten(harness: ReconcileHarness, losses: Losses) -> None:
    incarnation = await harness.start(harness.pod())
    good = await losses.checkpoint(incarnation, "good")
    await losses.checkpoint(incarnation, "bad", Shrinkage(good, "work", 400 << 20, 0))
    assert harness.agent()["shrank"]["message"].startswith("File tree work of agent coder shrank from 400Mi to 0.")
    await losses.checkpoint(incarnation, "regrown")
    assert harness.agent().get("shrank") is None
    assert set(harness.checkpoints()) == {"regrown"}


async def test_a_person_may_delete_the_last_good_checkpoint(harness: ReconcileHarness, losses: Losses) -> None:
    incarnation = await harness.start(harness.pod())
    good = await losses.checkpoint(incarnation, "good")
    loss = Shrinkage(good, "", 400 << 20, 0)
    await losses.checkpoint(incarnation, "bad", loss)
    harness.cluster.remove(CHECKPOINTS, "good", NAMESPACE)
    await losses.checkpoint(incarnation, "later", loss)
    assert set(harness.checkpoints()) == {"later"}
    assert "No checkpoint from before the loss is left." in harness.agent()["shrank"]["message"]


async def test_a_policy_may_keep_none(harness: ReconcileHarness, losses: Losses) -> None:
    spec = {"triggers": [], "retention": {"keepLast": 1, "minKnownGood": 0}}
    harness.cluster.put(POLICIES, "few", NAMESPACE, spec=spec)
    incarnation = await harness.start(harness.pod())
    good = await losses.checkpoint(incarnation, "good")
    await losses.checkpoint(incarnation, "bad", Shrinkage(good, "", 400 << 20, 0))
    assert set(harness.checkpoints()) == {"bad"}
