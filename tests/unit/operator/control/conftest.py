"""A cell for each test: a control server over fake ports on a loopback socket."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes.control_cell import Cell, running_cell


@pytest.fixture
async def cell() -> AsyncIterator[Cell]:
    async with running_cell() as running:
        yield running
