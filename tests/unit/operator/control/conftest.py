"""A cell for each test: a control server over fake ports on a loopback socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.control_cell import Cell, running_cell


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    async with running_cell(tmp_path / "store") as running:
        yield running
