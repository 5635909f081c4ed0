"""Whether this node still reaches the cluster, when the operator is silent: any answer of the API server proves it.

It asks without credentials and expects to be refused. It reads nothing and trusts nothing of the answer.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

ASK_SECONDS: Final = 3.0
EVERY_SECONDS: Final = 3.0


class Reachability:
    """Asks while it is told that asking matters."""

    def __init__(self, address: tuple[str, int], monotonic: Callable[[], float]) -> None:
        self._address, self._monotonic = address, monotonic
        self.reached_at = 0.0
        """By ``monotonic``: when it last answered."""

    async def watch(self, wanted: Callable[[], bool]) -> None:
        """Ask every few seconds while ``wanted``."""
        while True:
            if wanted() and await self.ask():
                self.reached_at = self._monotonic()
            await asyncio.sleep(EVERY_SECONDS)

    async def ask(self) -> bool:
        """Whether the API server answers at all."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # any answer will do: a refusal is what is expected
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(ASK_SECONDS):
                reader, writer = await asyncio.open_connection(*self._address, ssl=context)
                try:
                    host = self._address[0]
                    writer.write(f"HEAD /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                    await writer.drain()
                    return (await reader.readexactly(5)) == b"HTTP/"
                finally:
                    writer.close()
        return False
