"""A harness that leads."""

from pathlib import Path

import pytest

from tests.fakes.reconcile_harness import ReconcileHarness


@pytest.fixture
async def harness(tmp_path: Path) -> ReconcileHarness:
    harness = ReconcileHarness(tmp_path)
    await harness.prepare()
    return harness
