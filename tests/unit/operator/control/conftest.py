"""A harness for each test: a control server over fake ports on a loopback socket."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes.control_harness import ControlHarness, running_harness


@pytest.fixture
async def harness() -> AsyncIterator[ControlHarness]:
    async with running_harness() as running:
        yield running
