"""One WebSocket to a pod, as messages of the protocol: bounded in size, and in how long a send may take.

It knows nothing of roles. Only its reader task receives; anyone may send.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from enum import IntEnum

from aiohttp import WSMsgType, web
from savepoint.contract.control_protocol import FromOperator, FromPod, Message, ProtocolError, decode, encode
from savepoint.errors import KeyMismatch, NotAdopted, StoreDenied, StoreMisconfigured, StoreUnavailable, Unavailable

from savepoint_operator.control.rate_limit import MESSAGE_COSTS_BYTES, RateLimit
from savepoint_operator.rules.sanitize import heard

SEND_SECONDS = 10.0
CLOSE_REASON_BYTES = 120
MAY_PASS = (StoreUnavailable, StoreDenied, StoreMisconfigured, KeyMismatch, NotAdopted, Unavailable)
"""What says nothing about the pod, and passes without it: a pod that starts waits, one that runs dials again."""


class CloseCode(IntEnum):
    """Why the operator ends a connection (docs/control-protocol.md)."""

    DONE = 1000
    SLOW = 1008
    TOKEN_REFUSED = 4401
    NOT_AN_AGENT = 4403
    VERSION = 4406
    REPLACED = 4409
    NOT_LEADING = 4503


class Closing(Exception):
    """Ends the connection with a close code; how a session says so, and no error of this project's tree."""

    def __init__(self, code: CloseCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class Connection:
    """A pod's connection after the upgrade. ``abort`` drops a peer that no longer reads."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, send_seconds: float = SEND_SECONDS) -> None:
        self._socket, self._request, self._send_seconds = socket, request, send_seconds
        self.pace: RateLimit | None = None
        """What its pod may send; set once the pod is known, before anything is received."""
        self.received_bytes = 0
        """Of the last message."""

    async def send(self, message: FromOperator) -> None:
        """Send, or raise Unavailable when the connection is gone or its peer does not read."""
        try:
            async with asyncio.timeout(self._send_seconds):
                await self._socket.send_str(encode(message))
        except (ConnectionError, RuntimeError) as error:
            raise Unavailable("the control connection of the pod is closed") from error
        except TimeoutError as error:
            self.abort()
            raise Unavailable(f"the pod has not read its control connection for {self._send_seconds:.0f} s") from error

    async def receive(self, seconds: float) -> FromPod | None:
        """The next message; None when the connection has ended. Raises Closing for silence or what is no message.

        Whoever sends more than its pod's allowance is read more slowly.
        """
        if self.pace is not None and self.received_bytes:
            debt_seconds = self.pace.spend(self.received_bytes + MESSAGE_COSTS_BYTES)
            if debt_seconds > 0:
                await asyncio.sleep(debt_seconds)
        try:
            async with asyncio.timeout(seconds):
                frame = await self._socket.receive()
        except TimeoutError as error:
            raise Closing(CloseCode.SLOW, f"no message for {seconds:.0f} s") from error
        if frame.type is not WSMsgType.TEXT:
            return None
        self.received_bytes = len(frame.data)
        try:
            message: Message = decode(frame.data)
        except ProtocolError as error:
            raise Closing(CloseCode.VERSION, str(error)) from error
        if not isinstance(message, FromPod):
            raise Closing(CloseCode.VERSION, "a message that only the operator sends")
        return heard(message)

    async def messages(self, seconds: float) -> AsyncIterator[FromPod]:
        """Every message until the connection ends."""
        while (message := await self.receive(seconds)) is not None:
            yield message

    async def close(self, code: int, text: str) -> None:
        """End the connection; it never raises and never takes long."""
        with suppress(ConnectionError, RuntimeError, TimeoutError):
            async with asyncio.timeout(self._send_seconds):
                await self._socket.close(code=code, message=text.encode()[:CLOSE_REASON_BYTES])

    def abort(self) -> None:
        """Cut the connection without a word."""
        if self._request.transport is not None:
            self._request.transport.abort()
