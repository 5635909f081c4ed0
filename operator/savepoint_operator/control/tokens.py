"""Authenticates pods by bearer token, caching reviews for seconds so that a reconnect storm causes no review storm.

It never keeps or logs a token, only its digest.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable

from savepoint_operator.model.ports import TokenReviewer
from savepoint_operator.model.views import PodIdentity

ACCEPTED_SECONDS = 30.0
REFUSED_SECONDS = 5.0
MAX_REMEMBERED = 4096
CONCURRENT_REVIEWS = 16
TOKEN_MAX_BYTES = 16 << 10


class Tokens:
    """Answers of the reviewer, cached by the token's digest."""

    def __init__(self, reviewer: TokenReviewer, monotonic: Callable[[], float]) -> None:
        self._reviewer, self._monotonic = reviewer, monotonic
        self._known: OrderedDict[bytes, tuple[float, PodIdentity | None]] = OrderedDict()
        self._reviews = asyncio.Semaphore(CONCURRENT_REVIEWS)

    async def pod(self, authorization: str | None) -> PodIdentity | None:
        """Return the pod that an Authorization header proves, or None. Raises Unavailable."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_MAX_BYTES:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(digest)
        if known is not None and self._monotonic() < known[0]:
            return known[1]
        async with self._reviews:
            pod = await self._reviewer.review(token)
        self._known[digest] = (self._monotonic() + (ACCEPTED_SECONDS if pod else REFUSED_SECONDS), pod)
        self._known.move_to_end(digest)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return pod
