"""URLs on demand: a thread asks for a key, the event loop asks the operator, the book remembers.

Sidecar and init container share it. It knows neither roles nor connections: whoever has one hands in how to send, and
says when it is lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from typing import Final

from savepoint.contract.control_protocol import NeedUrls, Urls
from savepoint.errors import Refused, StoreUnavailable, Unavailable

from savepoint_sidecar.authority.url_book import UrlBook

WAIT_SECONDS: Final = 90.0
"""How long a thread waits for a URL: longer than an operator takes to be restarted."""
AGAIN_SECONDS: Final = 0.2


class UrlRequests:
    """A source of URLs for ``storage.presigned``. ``bind`` comes first, on the event loop."""

    def __init__(
        self,
        book: UrlBook,
        connected: asyncio.Event,
        send: Callable[[NeedUrls], Awaitable[None]],
        random_id: Callable[[], str],
    ) -> None:
        """``send`` raises Unavailable when the connection is lost; ``connected`` is set while there is one."""
        self.book = book
        self._connected, self._send, self._random_id = connected, send, random_id
        self._asks: dict[str, asyncio.Future[None]] = {}
        self._waits: set[Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def bind(self) -> None:
        """The running event loop is the one that asks."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Nobody is asked any more; what waits is told."""
        self._closed = True
        self.lost("this container ends")

    # -- from threads -------------------------------------------------------------------------------------------------

    def put_url(self, key: str) -> str:
        """A URL that creates this object. Unavailable after waiting for the operator in vain."""
        return self.book.put_url(key) or self._wait(key, (key,), (), self.book.put_url)

    def get_url(self, key: str) -> str:
        """A URL that reads this object, asked for together with what else is expected to be read."""
        return self.book.get_url(key) or self._wait(key, (), tuple(self.book.wanted_reads(key)), self.book.get_url)

    def forget(self, key: str) -> None:
        """The next URL of this key is asked for anew."""
        self.book.forget(key)

    def _wait(self, key: str, put: tuple[str, ...], get: tuple[str, ...], find: Callable[[str], str | None]) -> str:
        if self._loop is None or self._closed:
            raise Unavailable("the operator is not asked for URLs now")
        asking = asyncio.run_coroutine_threadsafe(self.fetch(put, get), self._loop)
        self._waits.add(asking)
        try:
            asking.result(WAIT_SECONDS)
        except (TimeoutError, CancelledError) as error:
            asking.cancel()
            raise Unavailable("the operator cannot be reached, and no URL is at hand") from error
        finally:
            self._waits.discard(asking)
        url = find(key)
        if url is None:
            raise Unavailable(f"the operator signs no URL for {key}")
        return url

    # -- on the event loop --------------------------------------------------------------------------------------------

    async def fetch(self, put: tuple[str, ...], get: tuple[str, ...]) -> None:
        """Have these URLs in the book; asked again when the connection is lost. Refused if they are not signed."""
        while not self._closed:
            await self._connected.wait()
            request = self._random_id()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._asks[request] = future
            try:
                await self._send(NeedUrls(request, put, get))
                await future
                return
            except Unavailable:
                await asyncio.sleep(AGAIN_SECONDS)
            finally:
                del self._asks[request]
        raise Unavailable("this container ends")

    def stop_waiting(self) -> None:
        """Threads that wait for a URL get none."""
        for asking in tuple(self._waits):
            asking.cancel()

    def waits_for(self, request: str) -> bool:
        """Whether somebody waits for the answer to this request."""
        return request in self._asks

    def answered(self, urls: Urls) -> None:
        """URLs have come, asked for or not."""
        self.book.add(urls)
        future = self._asks.get(urls.request)
        if future is not None and not future.done():
            future.set_result(None)

    def refused(self, request: str, error: Refused) -> None:
        """The operator signs none of what was asked for. What may pass is an error that is tried again."""
        why = StoreUnavailable(str(error)) if error.code == StoreUnavailable.reason else error
        future = self._asks.get(request)
        if future is not None and not future.done():
            future.set_exception(why)

    def lost(self, why: str = "the control connection was lost") -> None:
        """No answer will come to what was asked."""
        for future in self._asks.values():
            if not future.done():
                future.set_exception(Unavailable(why))
