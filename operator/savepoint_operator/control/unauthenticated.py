"""Connections of peers that have not shown who they are: few at a time, and none for long.

Any pod of the cluster may reach the control port. The oldest stranger goes when there are too many, so that a pod which
shows its token at once is served while somebody else opens connections and says nothing.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from aiohttp import web_protocol

STRANGER_SECONDS: Final = 20.0
STRANGERS_MOST: Final = 1024
HANDSHAKE_SECONDS: Final = 10.0


class UnauthenticatedConnections:
    """A protocol factory around aiohttp's, that remembers whom it has made."""

    def __init__(
        self,
        make: Callable[[], web_protocol.RequestHandler],
        *,
        seconds: float = STRANGER_SECONDS,
        most: int = STRANGERS_MOST,
    ) -> None:
        self._make, self._seconds, self._most = make, seconds, most
        self._waiting: OrderedDict[int, tuple[web_protocol.RequestHandler, asyncio.TimerHandle]] = OrderedDict()

    def __call__(self) -> web_protocol.RequestHandler:
        """The handler of a new connection."""
        handler = self._make()
        timer = asyncio.get_running_loop().call_later(self._seconds, self._send_away, id(handler))
        self._waiting[id(handler)] = (handler, timer)
        while len(self._waiting) > self._most:
            self._send_away(next(iter(self._waiting)))
        return handler

    def known(self, handler: object) -> None:
        """Whoever is on this connection has shown a token that is good."""
        _, timer = self._waiting.pop(id(handler), (None, None))
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Forget all of them."""
        for _, timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def _send_away(self, key: int) -> None:
        handler, timer = self._waiting.pop(key)
        timer.cancel()
        if handler.transport is not None:  # else it is gone already, or in its handshake, which has a bound of its own
            handler.transport.abort()
