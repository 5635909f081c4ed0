"""A queue of keys to reconcile: each key is processed by one worker at a time, with backoff after failures.

It does not depend on the objects behind the keys.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MIN_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 60.0


class KeyedQueue(Generic[K]):
    """A key that is added while it is being processed is processed again afterwards. Runs on one event loop."""

    def __init__(self, monotonic: Callable[[], float], jitter: Callable[[], float]) -> None:
        """``jitter`` returns numbers from 0 to 1."""
        self._monotonic, self._jitter = monotonic, jitter
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        """May hold stale entries: only those with the time in ``_due`` count."""
        self._order = itertools.count()
        self._in_progress: set[K] = set()
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, after_seconds: float = 0.0) -> None:
        """Queue the key, now or later; if it is queued already, the earlier time applies."""
        at = self._monotonic() + after_seconds
        if key not in self._due or at < self._due[key]:
            self._due[key] = at
            if key not in self._in_progress:
                self._push(key)

    async def take(self) -> K:
        """Wait for a key that is due and not in progress, and mark it as in progress."""
        while True:
            self._changed.clear()
            first = self._first()
            now = self._monotonic()
            if first is not None and first[0] <= now:
                heapq.heappop(self._heap)
                key = first[2]
                del self._due[key]
                self._in_progress.add(key)
                return key
            with suppress(TimeoutError):
                async with asyncio.timeout(None if first is None else first[0] - now):
                    await self._changed.wait()

    def done(self, key: K, *, requeue_seconds: float | None = None) -> None:
        """Mark the key as processed; queue it again if ``requeue_seconds`` is given."""
        self._failures.pop(key, None)
        self._end(key)
        if requeue_seconds is not None:
            self.add(key, requeue_seconds)

    def failed(self, key: K) -> float:
        """Queue a failed key again with backoff; return the seconds until then."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        backoff = min(MIN_BACKOFF_SECONDS * 2.0 ** min(count, 16), MAX_BACKOFF_SECONDS)
        pause = backoff * (0.5 + self._jitter() / 2)
        self._end(key)
        self.add(key, pause)
        return pause

    def failures(self, key: K) -> int:
        """Return how often the key has failed since it last succeeded."""
        return self._failures.get(key, 0)

    @property
    def due(self) -> bool:
        """True if ``take`` would return at once."""
        first = self._first()
        return first is not None and first[0] <= self._monotonic()

    def __len__(self) -> int:
        return len(self._due) + len(self._in_progress)

    def _first(self) -> tuple[float, int, K] | None:
        while self._heap:
            at, _, key = self._heap[0]
            if self._due.get(key) == at and key not in self._in_progress:
                return self._heap[0]
            heapq.heappop(self._heap)
        return None

    def _push(self, key: K) -> None:
        heapq.heappush(self._heap, (self._due[key], next(self._order), key))
        self._changed.set()

    def _end(self, key: K) -> None:
        self._in_progress.discard(key)
        if key in self._due:
            self._push(key)
