"""Presigned URLs on demand: a thread needs a URL, the event loop requests it from the operator, the cache keeps it.

Sidecar and init container share this module. It knows neither roles nor connections: the owner of the connection
passes in a function that sends, and reports when the connection is lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from typing import Final

from savepoint.contract.control_protocol import NeedUrls, Urls
from savepoint.errors import Refused, StoreUnavailable, Unavailable

from savepoint_sidecar.authority.url_cache import UrlCache

WAIT_SECONDS: Final = 90.0
"""Seconds that a thread waits for a URL: longer than a restart of the operator takes."""
RETRY_SECONDS: Final = 0.2


class UrlRequests:
    """A source of URLs for ``storage.presigned``. Call ``bind`` on the event loop before anything else."""

    def __init__(
        self,
        cache: UrlCache,
        connected: asyncio.Event,
        send: Callable[[NeedUrls], Awaitable[None]],
        random_id: Callable[[], str],
    ) -> None:
        """``send`` raises Unavailable when the connection is lost; ``connected`` is set while there is one."""
        self.cache = cache
        self._connected, self._send, self._random_id = connected, send, random_id
        self._requests: dict[str, asyncio.Future[None]] = {}
        self._thread_waits: set[Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def bind(self) -> None:
        """Use the running event loop for all requests."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Send no further requests, and fail the open ones."""
        self._closed = True
        self.fail_open_requests("this container is stopping")

    # -- from threads -------------------------------------------------------------------------------------------------

    def put_url(self, key: str) -> str:
        """Return a URL that creates this object. Raise Unavailable if the operator does not answer in time."""
        return self.cache.put_url(key) or self._wait(key, (key,), (), self.cache.put_url)

    def get_url(self, key: str) -> str:
        """Return a URL that reads this object. A request also covers other objects that are expected to be read."""
        return self.cache.get_url(key) or self._wait(key, (), tuple(self.cache.wanted_reads(key)), self.cache.get_url)

    def forget(self, key: str) -> None:
        """Discard this key's URLs, so that the next call requests a new one."""
        self.cache.forget(key)

    def _wait(self, key: str, put: tuple[str, ...], get: tuple[str, ...], find: Callable[[str], str | None]) -> str:
        if self._loop is None or self._closed:
            raise Unavailable(f"cannot request a URL for {key}: the control connection is not in use")
        fetch = asyncio.run_coroutine_threadsafe(self.fetch(put, get), self._loop)
        self._thread_waits.add(fetch)
        try:
            fetch.result(WAIT_SECONDS)
        except (TimeoutError, CancelledError) as error:
            fetch.cancel()
            raise Unavailable(f"the operator cannot be reached, and no valid URL for {key} is left") from error
        finally:
            self._thread_waits.discard(fetch)
        url = find(key)
        if url is None:
            raise Unavailable(f"the operator did not sign a URL for {key}")
        return url

    # -- on the event loop --------------------------------------------------------------------------------------------

    async def fetch(self, put: tuple[str, ...], get: tuple[str, ...]) -> None:
        """Bring these URLs into the cache, and repeat the request when the connection is lost.

        Raise Refused if the operator does not sign them.
        """
        while not self._closed:
            await self._connected.wait()
            request = self._random_id()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._requests[request] = future
            try:
                await self._send(NeedUrls(request, put, get))
                await future
                return
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                del self._requests[request]
        raise Unavailable("this container is stopping")

    def stop_waiting(self) -> None:
        """Fail the threads that wait for a URL."""
        for fetch in tuple(self._thread_waits):
            fetch.cancel()

    def is_open(self, request: str) -> bool:
        """Return whether this request is still unanswered."""
        return request in self._requests

    def handle_urls(self, urls: Urls) -> None:
        """Add the URLs to the cache, requested or not, and complete their request."""
        self.cache.add(urls)
        future = self._requests.get(urls.request)
        if future is not None and not future.done():
            future.set_result(None)

    def handle_refusal(self, request: str, error: Refused) -> None:
        """Fail the request. A transient fault becomes StoreUnavailable, which callers retry."""
        cause = StoreUnavailable(str(error)) if error.code == StoreUnavailable.reason else error
        future = self._requests.get(request)
        if future is not None and not future.done():
            future.set_exception(cause)

    def fail_open_requests(self, reason: str = "the control connection was lost") -> None:
        """Fail every open request, because no answer will come."""
        for future in self._requests.values():
            if not future.done():
                future.set_exception(Unavailable(reason))
