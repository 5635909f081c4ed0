"""A check that this node still reaches the cluster while the operator is silent: the API server answers at all.

The request carries no credentials and is expected to be refused. Nothing in the answer is read or trusted.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

TIMEOUT_SECONDS: Final = 3.0
INTERVAL_SECONDS: Final = 3.0


class Reachability:
    """A repeated probe of the API server, and the time of its last answer."""

    def __init__(self, address: tuple[str, int], monotonic: Callable[[], float]) -> None:
        self._address, self._monotonic = address, monotonic
        self.reached_at = 0.0
        """Time of the last answer, by ``monotonic``."""

    async def watch(self, is_needed: Callable[[], bool]) -> None:
        """Probe every few seconds while ``is_needed`` returns True."""
        while True:
            if is_needed() and await self.probe():
                self.reached_at = self._monotonic()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def probe(self) -> bool:
        """Return whether the API server sends any answer."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # any answer proves reachability, even one from a server we cannot verify
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(*self._address, ssl=context)
                try:
                    host = self._address[0]
                    writer.write(f"HEAD /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                    await writer.drain()
                    return (await reader.readexactly(5)) == b"HTTP/"
                finally:
                    writer.close()
        return False
