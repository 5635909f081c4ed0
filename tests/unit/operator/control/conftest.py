"""A cell for each test: a control server over fake ports on a loopback socket."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes.control_harness import ControlHarness, running_cell


@pytest.fixture
async def cell() -> AsyncIterator[ControlHarness]:
    async with running_cell() as running:
        yield running
