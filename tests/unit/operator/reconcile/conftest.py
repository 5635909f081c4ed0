"""A bench that leads."""

from pathlib import Path

import pytest

from tests.fakes.reconcile_bench import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    await bench.prepare()
    return bench
