"""A new leader reconciles stores before it serves pods, for a limited time."""

import pytest
from savepoint.errors import StoreMisconfigured, StoreUnavailable
from savepoint_operator.cluster.kinds import STORES

from tests.fakes.reconcile_harness import ReconcileHarness

SECOND = "second"


def another_store(harness: ReconcileHarness, secret: str = "s3-keys") -> None:
    """Create a store that is not reconciled yet."""
    s3 = {"endpoint": "https://s3.test", "bucket": "agents", "credentialsSecretName": secret}
    harness.cluster.put(STORES, SECOND, spec={"s3": s3})


async def test_a_reconciled_store_can_be_opened(harness: ReconcileHarness) -> None:
    another_store(harness)
    parts = harness.leader
    with pytest.raises(StoreUnavailable, match="has not been probed yet"):
        await parts.stores.open(SECOND)
    await parts.reconciler.reconcile_stores(30)
    assert (await parts.stores.open(SECOND)).name == SECOND
    assert harness.cluster.object(STORES, SECOND)["status"]["reason"] == "Ready"


async def test_a_slow_store_is_left_to_the_queue(harness: ReconcileHarness) -> None:
    another_store(harness)
    parts = harness.leader
    await parts.reconciler.reconcile_stores(0)
    with pytest.raises(StoreUnavailable, match="has not been probed yet"):
        await parts.stores.open(SECOND)
    await harness.settle()
    assert (await parts.stores.open(SECOND)).name == SECOND


async def test_an_unusable_store_gives_the_cause_and_does_not_block(harness: ReconcileHarness) -> None:
    another_store(harness, "no-such-secret")
    parts = harness.leader
    await parts.reconciler.reconcile_stores(30)
    with pytest.raises(StoreMisconfigured, match="no-such-secret does not exist"):
        await parts.stores.open(SECOND)


async def test_without_a_store_the_start_does_not_wait(harness: ReconcileHarness) -> None:
    for name in [store.meta.name for store in harness.leader.reconciler._cache.stores]:
        harness.cluster.remove(STORES, name)
    await harness.leader.reconciler.reconcile_stores(30)
