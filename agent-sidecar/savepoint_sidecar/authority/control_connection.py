"""One WebSocket connection to the operator: dialing with the current token, and messages in both directions.

It does not interpret the messages.
"""

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
from savepoint.contract.vocabulary import Reason
from savepoint.errors import Refused, Unavailable

log = logging.getLogger(__name__)

DIAL_SECONDS: Final = 10.0
SYN_RETRIES: Final = 1
"""An address that the operator has just left does not answer: TCP gives up after 3 s. A TLS handshake with a busy
operator may take longer."""
QUICK_PAUSE_SECONDS: Final = 1.0
SEND_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
CLOSE_NOT_AN_AGENT: Final = 4403
CLOSE_PROTOCOL_ERROR: Final = 4406
_FINAL_CLOSE_CODES: Final[dict[int, str]] = {CLOSE_NOT_AN_AGENT: Reason.NOT_AN_AGENT, CLOSE_PROTOCOL_ERROR: "Version"}


class ControlConnection:
    """An open connection. Unavailable means that it is lost, Refused that dialing again would not help."""

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._session, self._socket = session, socket

    async def send(self, message: FromPod) -> None:
        """Send one message. Raise Unavailable if the connection is lost."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._socket.send_str(encode(message))
        except (ConnectionError, RuntimeError, aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable("the control connection to the operator is lost") from error

    async def receive(self, seconds: float) -> Message:
        """Return the next message; skip messages of a newer protocol that cannot be decoded.

        Raise Unavailable if the connection ends or stays silent for ``seconds``, Refused if the close code is final.
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
                log.warning("skipped a message from the operator: %s", error)
        code = self._socket.close_code or 0
        if code in _FINAL_CLOSE_CODES:
            raise Refused(f"the operator closed the connection ({code}): {frame.extra or ''}", _FINAL_CLOSE_CODES[code])
        raise Unavailable(f"the operator closed the connection ({code})")

    async def close(self) -> None:
        """Close the connection."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._socket.close()
        except TimeoutError:
            pass
        finally:
            await self._session.close()


class Dialer:
    """The operator's URL and certificate and this pod's token file, from which connections are opened."""

    def __init__(self, url: str, ca_pem: str, token_path: Path) -> None:
        self._url, self._token_path = url, token_path
        self._tls: ssl.SSLContext | None = None
        if url.startswith("wss:"):
            self._tls = ssl.create_default_context(cadata=ca_pem)

    async def dial(self) -> ControlConnection:
        """Return a new connection. Raise Unavailable on failure. The token is read each time, as kubelet renews it."""
        try:
            token = (await asyncio.to_thread(self._token_path.read_text)).strip()
        except OSError as error:
            raise Unavailable(f"cannot read the service account token: {error.strerror}") from error
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=1, ssl=self._tls or False, force_close=True, socket_factory=_fast_failing_socket
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
            raise Unavailable(f"the operator cannot be reached: {str(error) or type(error).__name__}") from error
        except BaseException:
            await session.close()
            raise
        return ControlConnection(session, socket)


class Backoff:
    """Exponential pauses between dials, with jitter so that pods do not dial in step."""

    def __init__(self, jitter: Callable[[], float], longest_seconds: float = 10.0) -> None:
        self._jitter, self._longest, self._step = jitter, longest_seconds, 0
        self._quick = asyncio.Event()

    def retry_quickly(self) -> None:
        """End the current pause and keep later ones short."""
        self._longest = min(self._longest, QUICK_PAUSE_SECONDS)
        self._quick.set()

    def reset(self) -> None:
        """Start from short pauses again, because a connection succeeded."""
        self._step = 0

    async def pause(self) -> None:
        """Wait before the next dial."""
        ceiling = min(self._longest, 0.25 * 2**self._step)
        self._step = min(self._step + 1, 16)
        seconds = ceiling * (0.5 + self._jitter() / 2)
        if self._quick.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quick.wait()


def _fast_failing_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, SYN_RETRIES)
    return made
