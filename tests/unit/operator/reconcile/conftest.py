"""A bench that leads."""

from pathlib import Path

import pytest

from tests.fakes.reconcile_harness import ReconcileHarness


@pytest.fixture
async def bench(tmp_path: Path) -> ReconcileHarness:
    bench = ReconcileHarness(tmp_path)
    await bench.prepare()
    return bench
