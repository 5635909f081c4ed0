"""The pauses between dials to the operator."""

import asyncio

from savepoint_sidecar.authority.control_connection import Backoff


async def test_a_pause_between_dials_ends_when_the_pod_is_stopping() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff._step = 6
    paused = asyncio.ensure_future(backoff.pause())
    await asyncio.sleep(0)
    backoff.retry_quickly()
    async with asyncio.timeout(2):
        await paused
