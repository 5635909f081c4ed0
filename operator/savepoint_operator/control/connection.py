"""One WebSocket to a pod, as protocol messages: bounded in message size and in the time that a send may take.

It does not distinguish roles. Only its reader task receives; any task may send.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from enum import IntEnum

from aiohttp import WSMsgType, web
from savepoint.contract.control_protocol import FromOperator, FromPod, Message, ProtocolError, decode, encode
from savepoint.errors import KeyMismatch, NotAdopted, StoreDenied, StoreMisconfigured, StoreUnavailable, Unavailable

from savepoint_operator.control.rate_limit import MESSAGE_OVERHEAD_BYTES, RateLimit
from savepoint_operator.rules.sanitize import sanitized

SEND_SECONDS = 10.0
CLOSE_REASON_BYTES = 120
TRANSIENT = (StoreUnavailable, StoreDenied, StoreMisconfigured, KeyMismatch, NotAdopted, Unavailable)
"""Faults that the pod did not cause and cannot fix: a starting pod waits, a running one reconnects."""


class CloseCode(IntEnum):
    """The codes with which the operator closes a connection (docs/control-protocol.md)."""

    DONE = 1000
    LIMIT_EXCEEDED = 1008
    TOKEN_REFUSED = 4401
    NOT_AN_AGENT = 4403
    PROTOCOL_ERROR = 4406
    REPLACED = 4409
    TRY_AGAIN_LATER = 4503


class CloseConnection(Exception):
    """Closes the connection with a code. Used by sessions only; not one of the project's errors."""

    def __init__(self, code: CloseCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class Connection:
    """A pod's connection after the upgrade."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, send_seconds: float = SEND_SECONDS) -> None:
        self._socket, self._request, self._send_seconds = socket, request, send_seconds
        self.rate_limit: RateLimit | None = None
        """The pod's limit; set once the pod is known, before the first message is received."""
        self.received_bytes = 0
        """The size of the last message received."""

    async def send(self, message: FromOperator) -> None:
        """Send the message. Raises Unavailable if the connection is closed or its peer does not read."""
        try:
            async with asyncio.timeout(self._send_seconds):
                await self._socket.send_str(encode(message))
        except (ConnectionError, RuntimeError) as error:
            raise Unavailable("the control connection of the pod is closed") from error
        except TimeoutError as error:
            self.abort()
            raise Unavailable(f"the pod has not read its control connection for {self._send_seconds:.0f} s") from error

    async def receive(self, seconds: float) -> FromPod | None:
        """Return the next message, or None once the connection has ended. A pod over its rate limit is read later.

        Raises CloseConnection if no message arrives in time or if it is malformed.
        """
        if self.rate_limit is not None and self.received_bytes:
            debt_seconds = self.rate_limit.spend(self.received_bytes + MESSAGE_OVERHEAD_BYTES)
            if debt_seconds > 0:
                await asyncio.sleep(debt_seconds)
        try:
            async with asyncio.timeout(seconds):
                frame = await self._socket.receive()
        except TimeoutError as error:
            raise CloseConnection(CloseCode.LIMIT_EXCEEDED, f"no message for {seconds:.0f} s") from error
        if frame.type is not WSMsgType.TEXT:
            return None
        self.received_bytes = len(frame.data)
        try:
            message: Message = decode(frame.data)
        except ProtocolError as error:
            raise CloseConnection(CloseCode.PROTOCOL_ERROR, str(error)) from error
        if not isinstance(message, FromPod):
            raise CloseConnection(CloseCode.PROTOCOL_ERROR, "only the operator sends this message")
        return sanitized(message)

    async def messages(self, seconds: float) -> AsyncIterator[FromPod]:
        """Yield messages until the connection ends; ``seconds`` is the longest silence between two of them."""
        while (message := await self.receive(seconds)) is not None:
            yield message

    async def close(self, code: int, text: str) -> None:
        """Close the connection. Never raises, and takes at most as long as a send."""
        with suppress(ConnectionError, RuntimeError, TimeoutError):
            async with asyncio.timeout(self._send_seconds):
                await self._socket.close(code=code, message=text.encode()[:CLOSE_REASON_BYTES])

    def abort(self) -> None:
        """Drop the connection without a close frame, since the peer no longer reads."""
        if self._request.transport is not None:
            self._request.transport.abort()
