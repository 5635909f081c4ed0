"""Connections of peers that have not authenticated yet: limited in number and in time.

Any pod of the cluster can reach the control port. When there are too many, the oldest connection is dropped, so that a
pod that shows its token at once is served while another peer opens connections and stays silent.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from aiohttp import web_protocol

UNAUTHENTICATED_SECONDS: Final = 20.0
MAX_UNAUTHENTICATED: Final = 1024
HANDSHAKE_SECONDS: Final = 10.0


class UnauthenticatedConnections:
    """A protocol factory that wraps aiohttp's and tracks the handlers it creates until they authenticate."""

    def __init__(
        self,
        make: Callable[[], web_protocol.RequestHandler],
        *,
        seconds: float = UNAUTHENTICATED_SECONDS,
        limit: int = MAX_UNAUTHENTICATED,
    ) -> None:
        self._make, self._seconds, self._limit = make, seconds, limit
        self._waiting: OrderedDict[int, tuple[web_protocol.RequestHandler, asyncio.TimerHandle]] = OrderedDict()

    def __call__(self) -> web_protocol.RequestHandler:
        """Return the handler of a new connection."""
        handler = self._make()
        timer = asyncio.get_running_loop().call_later(self._seconds, self._drop, id(handler))
        self._waiting[id(handler)] = (handler, timer)
        while len(self._waiting) > self._limit:
            self._drop(next(iter(self._waiting)))
        return handler

    def authenticated(self, handler: object) -> None:
        """Stop tracking this connection: its peer has shown a valid token."""
        _, timer = self._waiting.pop(id(handler), (None, None))
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Stop tracking all connections."""
        for _, timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def _drop(self, key: int) -> None:
        handler, timer = self._waiting.pop(key)
        timer.cancel()
        if handler.transport is not None:  # else it is closed, or still in its handshake, which has its own timeout
            handler.transport.abort()
