"""One WebSocket to the operator: dialled with the token of the moment, messages in and out; it knows no meaning."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp
from savepoint.contract.control_protocol import MESSAGE_MAX_BYTES, FromPod, Message, ProtocolError, decode, encode
from savepoint.errors import Refused, Unavailable

log = logging.getLogger(__name__)

DIAL_SECONDS: Final = 10.0
SYN_REPEATS: Final = 1
"""An address behind which the operator was a moment ago says nothing: it is given up after 3 s. A handshake with one
that is busy may take longer."""
HURRIED_SECONDS: Final = 1.0
SEND_SECONDS: Final = 10.0
CLOSE_NOT_AN_AGENT: Final = 4403
CLOSE_VERSION: Final = 4406
_FINAL: Final = {CLOSE_NOT_AN_AGENT: "NotAnAgent", CLOSE_VERSION: "Version"}


class Channel:
    """An open connection. Unavailable says that it is gone; Refused that dialling again would not help."""

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._session, self._socket = session, socket

    async def send(self, message: FromPod) -> None:
        """Send, or raise Unavailable."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._socket.send_str(encode(message))
        except (ConnectionError, RuntimeError, aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable("the control connection to the operator is lost") from error

    async def receive(self, seconds: float) -> Message:
        """The next message. Unavailable when it ends or stays silent, Refused for a close code that is final.

        What a newer operator says in words that we do not know is passed over.
        """
        while True:
            try:
                frame = await self._socket.receive(seconds)
            except (TimeoutError, aiohttp.ClientError) as error:
                raise Unavailable(f"the operator was silent for {seconds:.0f} s") from error
            if frame.type is not aiohttp.WSMsgType.TEXT:
                break
            try:
                return decode(frame.data)
            except ProtocolError as error:
                log.warning("a message of the operator was passed over: %s", error)
        code = self._socket.close_code or 0
        if code in _FINAL:
            raise Refused(f"the operator closed the connection ({code}): {frame.extra or ''}", _FINAL[code])
        raise Unavailable(f"the operator closed the connection ({code})")

    async def close(self) -> None:
        """Let go of it."""
        try:
            async with asyncio.timeout(2.0):
                await self._socket.close()
        except TimeoutError:
            pass
        finally:
            await self._session.close()


class Dialer:
    """Knows where the operator is, by which certificate it is known, and where the token lies."""

    def __init__(self, url: str, ca_pem: str, token_path: Path) -> None:
        self._url, self._token_path = url, token_path
        self._tls: ssl.SSLContext | None = None
        if url.startswith("wss:"):
            self._tls = ssl.create_default_context(cadata=ca_pem)

    async def dial(self) -> Channel:
        """A fresh connection, with the token as it is now: kubelet renews it. Unavailable if there is none."""
        try:
            token = (await asyncio.to_thread(self._token_path.read_text)).strip()
        except OSError as error:
            raise Unavailable(f"the token cannot be read: {error.strerror}") from error
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=1, ssl=self._tls or False, force_close=True, socket_factory=_impatient_socket
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=DIAL_SECONDS, sock_connect=DIAL_SECONDS),
        )
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                socket = await session.ws_connect(
                    self._url,
                    headers={"Authorization": f"Bearer {token}"},
                    max_msg_size=MESSAGE_MAX_BYTES,
                    autoping=True,
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await session.close()
            raise Unavailable(f"the operator cannot be reached: {_short(error)}") from error
        except BaseException:
            await session.close()
            raise
        return Channel(session, socket)


class Backoff:
    """Pauses between dials: they grow, and differ between pods."""

    def __init__(self, jitter: Callable[[], float], longest_seconds: float = 10.0) -> None:
        self._jitter, self._longest, self._step = jitter, longest_seconds, 0
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """From now on pauses stay short; one under way ends."""
        self._longest = min(self._longest, HURRIED_SECONDS)
        self._hurried.set()

    def reset(self) -> None:
        """A connection has held."""
        self._step = 0

    async def pause(self) -> None:
        """Wait before the next dial."""
        ceiling = min(self._longest, 0.25 * 2**self._step)
        self._step = min(self._step + 1, 16)
        seconds = ceiling * (0.5 + self._jitter() / 2)
        if self._hurried.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurried.wait()


def _impatient_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, SYN_REPEATS)
    return made


def _short(error: BaseException) -> str:
    return str(error) or type(error).__name__
