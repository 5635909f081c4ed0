"""Presigned URLs requested ahead of need: a reserve for new packs, and reads of the parent checkpoint.

A sidecar that loses the operator can then still store a checkpoint and recover from a crash.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from savepoint.errors import Refused, Unavailable

from savepoint_sidecar.authority.url_requests import UrlRequests

log = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 30.0


class UrlRefill:
    """A background task that keeps the cache of ``urls`` filled."""

    def __init__(self, urls: UrlRequests, random_bytes: Callable[[int], bytes]) -> None:
        self._urls, self._random_bytes = urls, random_bytes
        self._needed = asyncio.Event()

    def request(self) -> None:
        """Refill soon, not only after the interval."""
        self._needed.set()

    async def run(self, epoch: Callable[[], int | None]) -> None:
        """Refill until cancelled. ``epoch`` returns None while the operator is not connected."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._needed.wait()
            self._needed.clear()
            current = epoch()
            if current is None:
                continue
            try:
                await self._refill(current)
            except (Refused, Unavailable) as error:
                log.warning("cannot fetch URLs ahead of need: %s; retrying in %.0f s", error, INTERVAL_SECONDS)

    async def _refill(self, epoch: int) -> None:
        cache = self._urls.cache
        names = [f"{epoch}-{self._random_bytes(16).hex()}" for _ in range(max(0, cache.reserve_missing()))]
        if names:
            await self._urls.fetch(tuple(f"packs/{name}" for name in names), ())
            for name in names:
                cache.reserve(name)
        while reads := cache.wanted_reads():
            await self._urls.fetch((), tuple(reads))
            if cache.wanted_reads() == reads:  # the operator did not sign them; do not ask for the same again
                break
