"""The harness of the reconcile tests."""

from pathlib import Path

import pytest

from tests.fakes.reconcile_harness import ReconcileHarness


@pytest.fixture
async def harness(tmp_path: Path) -> ReconcileHarness:
    """Return a harness with a store and a leader."""
    harness = ReconcileHarness(tmp_path)
    await harness.prepare()
    return harness
