"""Lifecycle rules of a bucket that will destroy checkpoints are shown on the store, with one Event."""

from collections.abc import Sequence
from typing import Any

import pytest
from savepoint.errors import SavepointError, StoreDenied
from savepoint_operator.cluster.kinds import STORES

from tests.fakes.reconcile_harness import ReconcileHarness
from tests.fakes.store import MemoryStore

NAME = "second"


class RuledStore(MemoryStore):
    """A store with lifecycle rules, or an error instead of them."""

    def __init__(self, rules: Sequence[str] | SavepointError) -> None:
        super().__init__()
        self.rules = rules

    def expiring_rules(self) -> Sequence[str]:
        if isinstance(self.rules, SavepointError):
            raise self.rules
        return self.rules


async def reconciled(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch, rules: Sequence[str] | SavepointError
) -> dict[str, Any]:
    store, stores = RuledStore(rules), harness.leader.stores
    monkeypatch.setattr(stores, "_build_store", lambda config: store)
    s3 = {"endpoint": "https://s3.test", "bucket": "agents", "prefix": NAME, "credentialsSecretName": "s3-keys"}
    harness.cluster.put(STORES, NAME, spec={"s3": s3})
    await harness.settle()
    found: dict[str, Any] = harness.cluster.object(STORES, NAME)["status"]
    assert found["reason"] == "Ready"
    return next(each for each in found["conditions"] if each["type"] == "Retained")


def warnings(harness: ReconcileHarness) -> list[str]:
    return harness.cluster.events("ObjectsExpire")


async def test_an_expiring_rule_is_named(harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = await reconciled(harness, monkeypatch, ["rule old deletes objects after 30 days"])
    assert (condition["status"], condition["reason"]) == ("False", "ObjectsExpire")
    assert "rule old deletes objects after 30 days" in condition["message"]
    assert warnings(harness) == [condition["message"]]


async def test_rules_that_cannot_be_read_leave_the_condition_unknown(
    harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = await reconciled(harness, monkeypatch, StoreDenied("403"))
    assert (condition["status"], condition["reason"]) == ("Unknown", "LifecycleUnknown")
    assert warnings(harness) == []


async def test_a_bucket_without_rules(harness: ReconcileHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = await reconciled(harness, monkeypatch, [])
    assert (condition["status"], condition["reason"]) == ("True", "NothingExpires")
